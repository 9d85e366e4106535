"""How a batch of records becomes a call of the user's own model, and which of its outputs are the logits."""

from .adapter import adapt, find_call, unadapt
from .detection import detect_call
from .model_call import ModelCall

__all__ = ["ModelCall", "adapt", "detect_call", "find_call", "unadapt"]
