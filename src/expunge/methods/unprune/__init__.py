"""Un-pruning [Xiao2025]: a method around another method that recomputes the mask from the retain set."""

from .method import Unprune
from .options import RULES

__all__ = ["RULES", "Unprune"]
