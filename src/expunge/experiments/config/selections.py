"""Labels for the values on a plan's axes, and selections of cells by label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from expunge.core.errors import ConfigError, unknown_name_hint


def make_label(value: Any) -> str:
    """Make the label of a value: its `name`, its keys and values, or the value itself as a string; `none` for null."""
    if value is None:
        return "none"
    if isinstance(value, dict):
        return str(value.get("name") or ", ".join(f"{k}={make_label(v)}" for k, v in value.items()))
    if isinstance(value, list):
        return ", ".join(map(make_label, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def matches(labels: Mapping[str, str], selection: Mapping[str, Any]) -> bool:
    """Whether a cell's labels are in a selection, which has one label or a list of labels for each axis it names."""
    return all(labels[axis] in wanted_labels(wanted) for axis, wanted in selection.items())


def wanted_labels(wanted: Any) -> list[str]:
    """The labels that a selection names for one axis."""
    return [make_label(w) for w in wanted] if isinstance(wanted, list) else [make_label(wanted)]


def read_selection(items: Sequence[str]) -> dict[str, list[str]]:
    """Read selections of the form `axis=label`.

    Raises:
        ConfigError: one has another form.

    >>> read_selection(["seed=0", "seed=1", "method=FT"])
    {'seed': ['0', '1'], 'method': ['FT']}
    """
    chosen: dict[str, list[str]] = {}
    for item in items:
        axis, sign, label = item.partition("=")
        if not sign:
            raise ConfigError("a selection has the form axis=label", where=item)
        chosen.setdefault(axis, []).append(label)
    return chosen


def check_labels(axes: Mapping[str, Sequence[str]], only: Mapping[str, Sequence[str]]) -> None:
    """Check a selection against the axes of a plan.

    Args:
        axes: axis to its labels.
        only: axis to the labels that are wanted.

    Raises:
        ConfigError: there is no such axis, or no such label.
    """
    for name, wanted in only.items():
        if name not in axes:
            raise ConfigError(f"the plan has no axis {name!r}", hint=unknown_name_hint(name, axes))
        for label in wanted:
            if label not in axes[name]:
                hint = unknown_name_hint(label, axes[name])
                raise ConfigError(f"the axis {name} has no label {label!r}", hint=hint)
