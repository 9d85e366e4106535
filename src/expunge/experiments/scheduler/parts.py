"""Part of a plan: some of its cells, with their references."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from expunge.core.errors import ConfigError
from expunge.experiments.config.plan import Plan
from expunge.experiments.config.selections import check_labels, matches


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
    check_labels({axis.name: axis.labels for axis in plan.axes}, only)
    chosen = {i for i, cell in enumerate(plan.cells) if matches(cell.labels, {k: list(v) for k, v in only.items()})}
    if not chosen:
        raise ConfigError("the plan has no cell with these labels", where=str(dict(only)))
    kept = sorted(chosen | {plan.cells[i].reference for i in chosen})
    place = {old: new for new, old in enumerate(kept)}
    cells = [dataclasses.replace(plan.cells[i], reference=place[plan.cells[i].reference]) for i in kept]
    return dataclasses.replace(plan, cells=tuple(cells), only={name: tuple(wanted) for name, wanted in only.items()})
