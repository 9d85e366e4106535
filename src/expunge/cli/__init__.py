"""The command line: it parses, calls one function, and prints. Importing this does not import torch."""

from .app import main

__all__ = ["main"]
