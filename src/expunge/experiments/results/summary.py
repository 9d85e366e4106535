"""Aggregate cells to the numbers of a table: means over seeds, spreads, gaps to the reference, the noise floor."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from expunge.core.show import repr_fields
from expunge.evaluation.facts import built_in_facts, score_facts
from expunge.evaluation.seeds import average_of_gaps, mean, noise_floors, spread, t_interval

from .claims import cell_score
from .groups import group_by_labels


@dataclasses.dataclass(frozen=True)
class RowSummary:
    """One score of one row of a table, aggregated over seeds.

    Attributes:
        mean: over seeds, None if no cell is finished.
        spread: sample standard deviation over seeds, None with fewer than two.
        gap: |mean - mean of the reference|, None for the reference itself and for costs.
        count, total: finished cells and all cells.
        over_limit: whether one of them used more passes than the plan allows.
        decimals: number of printed decimals.
        expected: whether a finished cell has this score.
        interval: 95 % t interval of the mean, for the scores that are printed with it; None with fewer than two seeds.
    """

    mean: float | None
    spread: float | None
    gap: float | None
    count: int
    total: int
    over_limit: bool = False
    decimals: int = 2
    expected: bool = True
    interval: tuple[float, float] | None = None

    __repr__ = repr_fields

    def text(self) -> str:
        """`93.08±2.29 (6.92)`; `-` without values; `[2/3]` if cells are missing; `!` if over the limit.

        With an interval: `0.131±0.020 [0.106, 0.156]`.
        """
        if self.mean is None:
            return "-" if not self.total or not self.expected else f"- [0/{self.total}]"
        number = f".{self.decimals}f" if abs(self.mean) < 1e5 else ".1e"
        shown = f"{self.mean:{number}}" + ("" if self.spread is None else f"±{self.spread:{number}}")
        shown += "" if self.gap is None else f" ({self.gap:{number}})"
        shown += "" if self.interval is None else f" [{self.interval[0]:{number}}, {self.interval[1]:{number}}]"
        shown += "" if self.count == self.total else f" [{self.count}/{self.total}]"
        return shown + (" !" if self.over_limit else "")


@dataclasses.dataclass(frozen=True)
class TableSection:
    """One table: all methods at all sparsities for one case.

    Attributes:
        case: labels of the `case` axes.
        rows: method label to sparsity label to score name to summary.
        floor: sparsity label to score name to the noise floor, for scores that are printed with a gap, and for
            distances to the reference.
        seeds: number of seeds.
        columns: score name to heading.
        overlaps: normalised overlaps of this case.
    """

    case: Mapping[str, str]
    rows: Mapping[str, Mapping[str, Mapping[str, RowSummary]]]
    floor: Mapping[str, Mapping[str, float]]
    seeds: int
    columns: Mapping[str, str]
    overlaps: Sequence[Mapping[str, Any]] = ()

    __repr__ = repr_fields


def column_headings(results: Mapping[str, Any]) -> dict[str, str]:
    """Score names and headings of the columns of a plan's tables."""
    names = results.get("columns")
    if not names:  # those of [Jia2023]
        names = [facts.name for facts in sorted(built_in_facts().values(), key=lambda f: f.column) if facts.column]
    units = {name: meaning.get("unit", "") for name, meaning in results.get("scores", {}).items()}
    return {name: score_facts(name).heading or f"{name} {units.get(name, '')}".strip() for name in names}


def make_sections(results: Mapping[str, Any]) -> list[TableSection]:
    """Make the tables of a result file, one for each case."""
    axes, cells = results["axes"], results["cells"]
    roles = {axis["name"]: axis["role"] for axis in axes}
    cases = [axis for axis in axes if axis["role"] == "case"]
    names = [axis["name"] for axis in cases]
    overlaps: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for one in results.get("overlaps", ()):
        overlaps.setdefault(tuple(one["at"].get(name) for name in names), []).append(one)
    found = []
    for choice, own in group_by_labels(cells, cases):
        case = dict(zip(names, choice, strict=True))
        section = _make_section(case, own, results, roles, column_headings(results))
        found.append(dataclasses.replace(section, overlaps=overlaps.get(choice, [])))
    return found


def row_label(cell: Mapping[str, Any], roles: Mapping[str, str], role: str) -> str:
    """The label of a cell's row (`method`) or column (`sparsity`)."""
    labels = [label for axis, label in cell["labels"].items() if roles[axis] == role]
    if labels:
        is_tuned = role == "method" and cell.get("options_from") == "tuned" and "tuned" not in labels
        return ", ".join([*labels, "tuned"] if is_tuned else labels)
    if role == "method":
        return str(cell["method"])
    return "dense" if not cell["sparsity"] else f"{100 * cell['sparsity']:g} %"


def _make_section(
    case: Mapping[str, str],
    own: list[dict[str, Any]],
    results: Mapping[str, Any],
    roles: Mapping[str, str],
    columns: Mapping[str, str],
) -> TableSection:
    cells = results["cells"]
    grouped: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for cell in own:
        row = grouped.setdefault(row_label(cell, roles, "method"), {})
        row.setdefault(row_label(cell, roles, "sparsity"), []).append(cell)
    rows: dict[str, dict[str, dict[str, RowSummary]]] = {}
    floor: dict[str, dict[str, float]] = {}
    for method, parts in grouped.items():
        rows[method] = {part: _summarise_rows(members, cells, columns) for part, members in parts.items()}
        for column, members in parts.items():
            if members[0]["is_reference"]:
                floor[column] = {**floor.get(column, {}), **_floors(members)}
            if results.get("rerun") in members[0]["labels"].values():
                found = rerun_floors(members, cells, columns)
                floor[column] = {**floor.get(column, {}), **found}
    seeds = max(len(members) for parts in grouped.values() for members in parts.values())
    return TableSection(case, rows, floor, seeds, columns)


def _summarise_rows(
    members: list[dict[str, Any]], cells: list[dict[str, Any]], columns: Mapping[str, str]
) -> dict[str, RowSummary]:
    numbers = {}
    reference = [cells[cell["reference"]] for cell in members]
    is_reference = members[0]["is_reference"]
    finished = [cell for cell in members if cell["state"] == "finished"]
    facts = {name: score_facts(name) for name in columns}
    terms = dict.fromkeys(term for own in facts.values() for term in own.averages)
    facts |= {name: score_facts(name) for name in terms}
    for name, own_facts in facts.items():
        values = _values(members, cells, name)
        gap = None
        if own_facts.gap and not is_reference:
            own, other = mean(values), mean(_values(reference, cells, name))
            gap = None if own is None or other is None else abs(own - other)
        over = name == "Passes" and any(cell.get("over_limit") for cell in members)
        numbers[name] = RowSummary(
            mean(values),
            spread(values),
            gap,
            len(values),
            len(members),
            over,
            decimals=own_facts.decimals,
            expected=not finished or bool(values),
            interval=t_interval(values) if own_facts.interval else None,
        )
    gaps = {name: number.gap for name, number in numbers.items()}
    for name, own_facts in facts.items():
        if own_facts.averages and not is_reference:
            numbers[name] = dataclasses.replace(numbers[name], gap=average_of_gaps(gaps, own_facts.averages))
    return numbers


def _values(members: Sequence[Mapping[str, Any]], cells: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    values = [cell_score(cell, cells, name) for cell in members]
    return [value for value in values if value is not None]


def _floors(members: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Noise floors of the scores that are printed with a gap, from the reference cells of all seeds."""
    models = [cell.get("hashes", {}).get("weights") for cell in members]
    found = noise_floors([cell["scores"] for cell in members], models)
    return {name: floor for name, floor in found.items() if score_facts(name).gap or score_facts(name).averages}


def rerun_floors(
    members: Sequence[Mapping[str, Any]], cells: Sequence[Mapping[str, Any]], names: Iterable[str]
) -> dict[str, float]:
    """Noise floors of distances to the reference: their means over the cells that rerun the reference.

    Args:
        members: the cells that rerun it with another order of records, one a seed.
        cells: all cells.
        names: of scores; those without `rerun_floor` in their facts are left out.
    """
    means = {name: mean(_values(members, cells, name)) for name in names if score_facts(name).rerun_floor}
    return {name: value for name, value in means.items() if value is not None}
