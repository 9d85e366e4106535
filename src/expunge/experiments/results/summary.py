"""Aggregate cells to the numbers of a table: means over seeds, spreads, gaps to the reference, the noise floor."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from expunge.core.show import repr_fields
from expunge.evaluation.noise import noise_floors
from expunge.evaluation.scores.disparity import NAME as DISPARITY_NAME
from expunge.evaluation.scores.disparity import TERMS as DISPARITY

from .claims import cell_score, mean, spread
from .groups import group_by_labels

#: Scores that are printed with the distance between their mean and that of the reference.
WITH_GAP = (*DISPARITY, "AUC")
#: Headings of other scores, if the score's name and unit would be too long or unclear.
OTHER_COLUMNS = {
    "IoU": "IoU with reference",
    "IoU of the original": "IoU of the original",
    "Leakage null": "AUC by chance",
    "Topology leakage": "Leakage AUC",
    "Leakage p": "p",
}
#: Score names and headings of the default table, in the order of [Jia2023].
COLUMNS = {
    "UA": "UA %",
    "MIA-Efficacy": "MIA-Efficacy %",
    "RA": "RA %",
    "TA": "TA %",
    "Disparity average": "Disparity",
    "RTE": "RTE s",
    "Passes": "Passes",
}


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
    """

    mean: float | None
    spread: float | None
    gap: float | None
    count: int
    total: int
    over_limit: bool = False
    decimals: int = 2
    expected: bool = True

    def text(self) -> str:
        """`93.08±2.29 (6.92)`; `-` without values; `[2/3]` if cells are missing; `!` if over the limit."""
        if self.mean is None:
            return "-" if not self.total or not self.expected else f"- [0/{self.total}]"
        number = f".{self.decimals}f" if abs(self.mean) < 1e5 else ".1e"
        shown = f"{self.mean:{number}}" + ("" if self.spread is None else f"±{self.spread:{number}}")
        shown += "" if self.gap is None else f" ({self.gap:{number}})"
        shown += "" if self.count == self.total else f" [{self.count}/{self.total}]"
        return shown + (" !" if self.over_limit else "")


@dataclasses.dataclass(frozen=True)
class TableSection:
    """One table: all methods at all sparsities for one case.

    Attributes:
        case: labels of the `case` axes.
        rows: method label to sparsity label to score name to summary.
        floor: sparsity label to score name to the noise floor, for scores that are printed with a gap.
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
    if not results.get("columns"):
        return COLUMNS
    known = {**COLUMNS, **OTHER_COLUMNS}
    units = {name: meaning.get("unit", "") for name, meaning in results["scores"].items()}
    return {name: known.get(name, f"{name} {units.get(name, '')}".strip()) for name in results["columns"]}


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
        section = _make_section(case, own, cells, roles, column_headings(results))
        found.append(dataclasses.replace(section, overlaps=overlaps.get(choice, [])))
    return found


def row_label(cell: Mapping[str, Any], roles: Mapping[str, str], role: str) -> str:
    """The label of a cell's row (`method`) or column (`sparsity`)."""
    labels = [label for axis, label in cell["labels"].items() if roles[axis] == role]
    if labels:
        return ", ".join(labels)
    if role == "method":
        return str(cell["method"])
    return "dense" if not cell["sparsity"] else f"{100 * cell['sparsity']:g} %"


def _make_section(
    case: Mapping[str, str],
    own: list[dict[str, Any]],
    cells: list[dict[str, Any]],
    roles: Mapping[str, str],
    columns: Mapping[str, str],
) -> TableSection:
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
                floor[column] = _floors(members)
    seeds = max(len(members) for parts in grouped.values() for members in parts.values())
    return TableSection(case, rows, floor, seeds, columns)


def _summarise_rows(
    members: list[dict[str, Any]], cells: list[dict[str, Any]], columns: Mapping[str, str]
) -> dict[str, RowSummary]:
    numbers = {}
    reference = [cells[cell["reference"]] for cell in members]
    is_reference = members[0]["is_reference"]
    finished = [cell for cell in members if cell["state"] == "finished"]
    for name in dict.fromkeys((*columns, *DISPARITY, "Disparity average")):
        values = _values(members, cells, name)
        gap = None
        if name in WITH_GAP and not is_reference:
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
            decimals=score_decimals(name),
            expected=not finished or any(name in cell["scores"] for cell in finished),
        )
    gaps = [numbers[name].gap for name in DISPARITY]
    if not is_reference and all(gap is not None for gap in gaps):
        of_means = mean([gap for gap in gaps if gap is not None])
        numbers["Disparity average"] = dataclasses.replace(numbers["Disparity average"], gap=of_means)
    return numbers


def _values(members: Sequence[Mapping[str, Any]], cells: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    values = [cell_score(cell, cells, name) for cell in members]
    return [value for value in values if value is not None]


def _floors(members: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Noise floors of the scores that are printed with a gap, from the reference cells of all seeds."""
    models = [cell.get("hashes", {}).get("weights") for cell in members]
    found = noise_floors([cell["scores"] for cell in members], models)
    return {name: found[name] for name in (*WITH_GAP, DISPARITY_NAME) if name in found}


def score_decimals(name: str) -> int:
    """Number of decimals of a score in a table; region radii are small compared with the other scores."""
    if name == "Region radius":
        return 6
    return 2 if name in COLUMNS or name.startswith("MIA-") else 3
