"""Checks certificates of patched classifiers. It trusts nothing in the folder: it recomputes what is claimed."""

__version__ = "0.1.0"
