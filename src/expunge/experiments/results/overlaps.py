"""The normalised overlap of [Xiao2025] for every method of a plan, from the scores of its cells."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

Cells = Sequence[Mapping[str, Any]]


def compute_overlaps(cells: Cells, axes: Sequence[Mapping[str, Any]], rerun: str | None) -> list[dict[str, Any]]:
    """Compute one overlap for every group of cells that differ only in their seeds; see `normalised_overlap`.

    Args:
        cells: of a result file.
        axes: of a result file.
        rerun: label of the cells that rerun the reference with another order of records; None: no overlaps.
    """
    if rerun is None:
        return []
    from expunge.evaluation.topology import normalised_overlap

    roles = {axis["name"]: axis["role"] for axis in axes}
    rerun_overlap = {
        cell["reference"]: cell["scores"]["IoU"]
        for cell in cells
        if rerun in cell["labels"].values() and "IoU" in cell["scores"]
    }
    groups: dict[tuple[tuple[str, str], ...], list[Mapping[str, Any]]] = {}
    for cell in cells:
        if not cell["is_reference"] and cell["reference"] in rerun_overlap and "IoU" in cell["scores"]:
            key = tuple((name, label) for name, label in cell["labels"].items() if roles[name] != "replicate")
            groups.setdefault(key, []).append(cell)
    found = []
    for key, members in groups.items():
        if rerun in dict(key).values() or len(members) < 2:
            continue
        overlap = normalised_overlap(
            [cell["scores"]["IoU"] for cell in members],
            [cell["scores"]["IoU of the original"] for cell in members],
            [rerun_overlap[cell["reference"]] for cell in members],
        )
        found.append({"at": dict(key), **dataclasses.asdict(overlap)})
    return found
