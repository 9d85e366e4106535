"""Data: records with stable ids, sources, splits, forget sets, batches. Importing it does not import torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .forget_set import (
    forget_class,
    forget_column,
    forget_ids,
    forget_memorised,
    forget_random,
    forget_subjects,
)
from .quality import find_cautions
from .reading.id_lists import read_ids
from .records import Caution, Normalisation, Records
from .registry import load_records, register_source, source_fingerprint, source_names
from .selection import check_selection, select_forget
from .splitting import make_split

if TYPE_CHECKING:
    from .batches import Batches

__all__ = [
    "Batches",
    "Caution",
    "Normalisation",
    "Records",
    "check_selection",
    "find_cautions",
    "forget_class",
    "forget_column",
    "forget_ids",
    "forget_memorised",
    "forget_random",
    "forget_subjects",
    "load_records",
    "make_split",
    "read_ids",
    "register_source",
    "select_forget",
    "source_fingerprint",
    "source_names",
]


def __getattr__(name: str) -> Any:
    if name == "Batches":  # the one name here that needs torch
        from .batches import Batches

        return Batches
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
