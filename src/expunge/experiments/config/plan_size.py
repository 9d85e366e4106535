"""The size of a plan: axes, cells, what they are made of and what they set; counted before any cell is expanded."""

from __future__ import annotations

import math
from collections.abc import Sequence

from expunge.core.errors import ConfigError
from expunge.core.reading.limits import (
    LABEL_LENGTH,
    PLAN_AXES,
    PLAN_CELLS,
    PLAN_KEYS,
    PLAN_NODES,
    PLAN_SETTINGS,
    PLAN_TEXT,
)

from .axis import Axis
from .plan_file import PlanFile
from .yaml_source import YamlText


def check_size(file: PlanFile, axes: Sequence[Axis], overrides: Sequence[str], text: YamlText) -> None:
    """Check the size of the grid before any cell is expanded.

    Raises:
        ConfigError: more axes, cells or settings than the limits allow.
    """
    if len(axes) > PLAN_AXES:
        raise ConfigError(f"the plan has {len(axes)} axes; the limit is {PLAN_AXES}", where=text.where(("grid",)))
    cells = math.prod(len(axis.labels) for axis in axes)
    PLAN_CELLS.check(cells, "the grid has", where=text.where(("grid",)), error=ConfigError)
    check_copies(cells, text, text.where(("grid",)))
    keys = sum(max(map(len, axis.settings.values())) for axis in axes) + len(overrides)
    keys += sum(len(adjustment.set) for adjustment in file.adjust)
    PLAN_KEYS.check(cells * keys, "makes", where=text.where(("grid",)), error=ConfigError)
    for i, adjustment in enumerate(file.adjust):
        if len(adjustment.set) > PLAN_SETTINGS:
            what = f"an adjustment sets {len(adjustment.set)} keys; the limit is {PLAN_SETTINGS}"
            raise ConfigError(what, where=text.where(("adjust", i)))
    for axis in axes:
        for label, settings in axis.settings.items():
            if len(label) > LABEL_LENGTH:
                what = f"a label of {len(label):,} characters; the limit is {LABEL_LENGTH}"
                raise ConfigError(what, where=text.where(axis.key_paths[label]), hint="write the axis as a mapping")
            if len(settings) > PLAN_SETTINGS:
                raise ConfigError(
                    f"the label {label!r} sets {len(settings)} keys; the limit is {PLAN_SETTINGS}",
                    where=text.where(axis.key_paths[label]),
                )


def check_copies(cells: int, text: YamlText, where: str) -> None:
    """Check how much the cells take that are made of a text."""
    PLAN_NODES.check(cells * len(text.lines), "makes", where=where, error=ConfigError)
    PLAN_TEXT.check(cells * text.characters, "makes", where=where, error=ConfigError)
