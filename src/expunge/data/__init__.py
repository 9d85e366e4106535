"""Data: records with stable ids, sources, splits, forget sets, batches. Importing this room does not import torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .records import Normalisation, Records

if TYPE_CHECKING:
    from .batches import Batches

__all__ = ["Batches", "Normalisation", "Records"]


def __getattr__(name: str) -> Any:
    if name == "Batches":  # the one name here that needs torch
        from .batches import Batches

        return Batches
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
