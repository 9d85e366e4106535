"""Independent checker for certificates of patched classifiers. It trusts no file and recomputes every claim."""

__version__ = "0.1.0"
