"""The key `resources` of a plan: what stages need of an engine (docs/engines.md)."""

from __future__ import annotations

import math
import re
from typing import Any

from expunge.core.errors import ConfigError, unknown_name_hint
from expunge.core.registry import STAGES

from .plan_file import PlanFile
from .yaml_source import YamlText

_UNITS = {
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
_SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,6})?) ?([kMGT]?B|[KMGT]iB)")


def read_resources(file: PlanFile, text: YamlText) -> dict[str, dict[str, float]]:
    """Check the key `resources`: stage to name of a resource to a number; `memory` is in bytes, or with a unit.

    Raises:
        ConfigError: there is no such stage, or a value is not a positive number.
    """
    known = [one.name for one in STAGES.definitions() if one.module.startswith("expunge.")]
    found: dict[str, dict[str, float]] = {}
    for stage, needs in file.resources.items():
        if stage not in known:
            hint = unknown_name_hint(stage, known)
            raise ConfigError(f"a plan has no stage {stage!r}", where=text.where(("resources", stage)), hint=hint)
        found[stage] = {}
        for name, value in needs.items():
            number = _read_amount(name, value)
            if number is None:
                hint = "for example gpu: 1, cpu: 2, memory: 8 GiB"
                where = text.where(("resources", stage, name))
                raise ConfigError(f"{value!r} is not a positive amount of {name}", where=where, hint=hint)
            found[stage][name] = number
    return found


def _read_amount(name: str, value: Any) -> float | None:
    """A positive number, or None."""
    if name == "memory" and isinstance(value, str):
        match = _SIZE.fullmatch(value.strip())
        return None if match is None else float(match[1]) * _UNITS[match[2]] or None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        return None
    return float(value)
