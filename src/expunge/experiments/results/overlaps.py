"""Paper B's normalised overlap for every method of a plan, from the scores of its cells."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

Cells = Sequence[Mapping[str, Any]]


def overlaps(cells: Cells, axes: Sequence[Mapping[str, Any]], again: str | None) -> list[dict[str, Any]]:
    """One entry for every group of cells that differ in their seeds alone; see `normalised_overlap`.

    Args:
        cells: of a result file.
        axes: of a result file.
        again: label of the cells that repeat the reference with another order of records; None: no entries.
    """
    if again is None:
        return []
    from expunge.evaluation.topology import normalised_overlap

    roles = {axis["name"]: axis["role"] for axis in axes}
    repeats = {
        cell["reference"]: cell["scores"]["IoU"]
        for cell in cells
        if again in cell["labels"].values() and "IoU" in cell["scores"]
    }
    groups: dict[tuple[tuple[str, str], ...], list[Mapping[str, Any]]] = {}
    for cell in cells:
        if not cell["is_reference"] and cell["reference"] in repeats and "IoU" in cell["scores"]:
            key = tuple((name, label) for name, label in cell["labels"].items() if roles[name] != "replicate")
            groups.setdefault(key, []).append(cell)
    found = []
    for key, members in groups.items():
        if again in dict(key).values() or len(members) < 2:
            continue
        overlap = normalised_overlap(
            [cell["scores"]["IoU"] for cell in members],
            [cell["scores"]["IoU of the original"] for cell in members],
            [repeats[cell["reference"]] for cell in members],
        )
        found.append({"at": dict(key), **dataclasses.asdict(overlap)})
    return found
