"""The command line: parse the arguments, call one function, print the result. Importing this does not import torch."""

from .app import main

__all__ = ["main"]
