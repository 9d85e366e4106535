"""Labels for the values on a plan's axes, and selections of cells by label."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from expunge.core.errors import ConfigError, unknown_name_hint

if TYPE_CHECKING:
    from .plan import Plan


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


def select_cells(plan: Plan, only: Mapping[str, Sequence[str]]) -> Plan:
    """A plan with some of the cells, and with the references of these.

    Args:
        plan: see `load_plan`.
        only: axis to the labels of the cells; axes that are not named have all labels. Empty: all cells.

    Returns:
        The plan, with the same hash; its `only` is the selection.

    Raises:
        ConfigError: the plan has no such axis or label, or no cell with these labels.
    """
    if not only:
        return plan
    labels = {axis.name: axis.labels for axis in plan.axes}
    for name, wanted in only.items():
        if name not in labels:
            raise ConfigError(f"the plan has no axis {name!r}", hint=unknown_name_hint(name, labels))
        for label in wanted:
            if label not in labels[name]:
                hint = unknown_name_hint(label, labels[name])
                raise ConfigError(f"the axis {name} has no label {label!r}", hint=hint)
    chosen = {i for i, cell in enumerate(plan.cells) if matches(cell.labels, {k: list(v) for k, v in only.items()})}
    if not chosen:
        raise ConfigError("the plan has no cell with these labels", where=str(dict(only)))
    kept = sorted(chosen | {plan.cells[i].reference for i in chosen})
    place = {old: new for new, old in enumerate(kept)}
    cells = [dataclasses.replace(plan.cells[i], reference=place[plan.cells[i].reference]) for i in kept]
    return dataclasses.replace(plan, cells=tuple(cells), only={name: tuple(wanted) for name, wanted in only.items()})
