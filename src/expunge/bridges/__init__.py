"""Bridges: what later requests need, recorded while a model is trained by another tool. See docs/recipes.md."""

from expunge.core.lazy import import_on_use

from .recording import Recording, read_recording

__all__ = ["Recording", "read_recording"]

import_on_use(__name__)
