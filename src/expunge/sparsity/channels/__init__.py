"""Coupled channels: which rows, columns, scales and shifts are pruned together."""
