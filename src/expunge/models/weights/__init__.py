"""Weights of other tools: read from their files and folders, with exact errors if they do not fit."""

from .folders import find_prefix, find_weights, list_weight_files, read_weights
from .loading import find_weight_prefix, load_tensors, load_weights, match_names

__all__ = [
    "find_prefix",
    "find_weight_prefix",
    "find_weights",
    "list_weight_files",
    "load_tensors",
    "load_weights",
    "match_names",
    "read_weights",
]
