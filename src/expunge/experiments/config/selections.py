"""Labels of the values of a plan's axes, and selections of cells by label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def label_of(value: Any) -> str:
    """The label of a value: its `name`, its keys and values, or the value itself as text; `none` for null."""
    if value is None:
        return "none"
    if isinstance(value, dict):
        return str(value.get("name") or ", ".join(f"{k}={label_of(v)}" for k, v in value.items()))
    if isinstance(value, list):
        return ", ".join(map(label_of, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def matches(labels: Mapping[str, str], selection: Mapping[str, Any]) -> bool:
    """Whether a cell's labels are among those of a selection (a label or a list of labels for each axis)."""
    return all(labels[axis] in wanted_labels(wanted) for axis, wanted in selection.items())


def wanted_labels(wanted: Any) -> list[str]:
    """The labels that a selection names for one axis."""
    return [label_of(w) for w in wanted] if isinstance(wanted, list) else [label_of(wanted)]
