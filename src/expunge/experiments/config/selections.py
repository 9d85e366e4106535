"""Labels for the values on a plan's axes, and selections of cells by label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from expunge.core.errors import ConfigError


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
