"""Compression of pruned models: physically smaller networks, their files, and semi-structured sparse tensors."""
