"""Data: records with stable ids, sources, splits, forget sets, batches. Importing it does not import torch.

Each name is imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from expunge.core.lazy import import_on_use

if TYPE_CHECKING:
    from .batches import Batches
    from .corrections.request import blank_columns, correct_labels
    from .corrections.values import correct_records
    from .data_dir import DataDir
    from .forget_set import (
        forget_class,
        forget_column,
        forget_ids,
        forget_memorised,
        forget_random,
        forget_subjects,
    )
    from .planting.backdoor import Trigger, plant_backdoor
    from .planting.canaries import plant_canaries
    from .planting.look_alikes import plant_look_alikes
    from .planting.plant import forget_planted
    from .planting.strata import forget_stratum
    from .quality import find_cautions
    from .reading.id_lists import read_ids
    from .records import Caution, Normalisation, Records
    from .registry import load_records, register_source, source_fingerprint, source_names
    from .selection import check_selection, select_forget
    from .splitting import make_split

_MODULES: dict[str, tuple[str, ...]] = {
    "batches": ("Batches",),
    "corrections.request": ("blank_columns", "correct_labels"),
    "corrections.values": ("correct_records",),
    "data_dir": ("DataDir",),
    "forget_set": (
        "forget_class",
        "forget_column",
        "forget_ids",
        "forget_memorised",
        "forget_random",
        "forget_subjects",
    ),
    "planting.backdoor": ("Trigger", "plant_backdoor"),
    "planting.canaries": ("plant_canaries",),
    "planting.look_alikes": ("plant_look_alikes",),
    "planting.plant": ("forget_planted",),
    "planting.strata": ("forget_stratum",),
    "quality": ("find_cautions",),
    "reading.id_lists": ("read_ids",),
    "records": ("Caution", "Normalisation", "Records"),
    "registry": ("load_records", "register_source", "source_fingerprint", "source_names"),
    "selection": ("check_selection", "select_forget"),
    "splitting": ("make_split",),
}

__all__ = [
    "Batches",
    "Caution",
    "DataDir",
    "Normalisation",
    "Records",
    "Trigger",
    "blank_columns",
    "check_selection",
    "correct_labels",
    "correct_records",
    "find_cautions",
    "forget_class",
    "forget_column",
    "forget_ids",
    "forget_memorised",
    "forget_planted",
    "forget_random",
    "forget_stratum",
    "forget_subjects",
    "load_records",
    "make_split",
    "plant_backdoor",
    "plant_canaries",
    "plant_look_alikes",
    "read_ids",
    "register_source",
    "select_forget",
    "source_fingerprint",
    "source_names",
]

import_on_use(__name__, _MODULES)
