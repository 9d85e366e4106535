"""Coupled channels: which rows, columns, scales and shifts of a network are pruned together."""
