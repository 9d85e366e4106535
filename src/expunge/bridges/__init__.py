"""Bridges: what later requests need, recorded while a model is trained by another tool. See docs/recipes.md."""

from .recording import Recording, read_recording

__all__ = ["Recording", "read_recording"]
