"""Weights of other tools: read from their files and folders, with exact errors if they do not fit."""

from .loading import load_tensors, load_weights, match_names

__all__ = ["load_tensors", "load_weights", "match_names"]
