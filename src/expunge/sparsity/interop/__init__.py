"""Pruned models from and for other tools: file formats, recorded provenance, adoption."""
