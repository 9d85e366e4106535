"""The kinds of planting by name, for the section `forget` of a configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from expunge.core.split import Split
from expunge.data.records import Records

from .backdoor import plant_backdoor
from .canaries import plant_canaries
from .look_alikes import plant_look_alikes

#: One function for each of `expunge.core.split.PLANTINGS`.
PLANTERS: dict[str, Callable[..., Records]] = {
    "backdoor": plant_backdoor,
    "canaries": plant_canaries,
    "look-alikes": plant_look_alikes,
}


def plant(records: Records, split: Split, selection: Mapping[str, Any]) -> Records:
    """Plant what a section `forget` describes, with its options.

    Args:
        records: as their source has them.
        split: their split.
        selection: `by`, one of `PLANTERS`; `hold`; and the options of that kind.

    Raises:
        RequestError, ConfigError: see the functions of `PLANTERS`.

    Example:
        >>> import expunge
        >>> records = expunge.load_records("digits")
        >>> planted = plant(records, expunge.make_split(records, seed=0), {"by": "canaries", "count": 2})
        >>> planted.planted.by, len(planted) - len(records)
        ('canaries', 2)
    """
    given = {key: value for key, value in selection.items() if value is not None and key not in ("by", "hold")}
    return PLANTERS[str(selection["by"])](records, split, hold=selection.get("hold") or (), **given)
