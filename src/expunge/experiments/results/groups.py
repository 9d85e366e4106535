"""Group the cells of a result file by their labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

Cell = TypeVar("Cell", bound=Mapping[str, Any])


def group_by_labels(
    cells: Iterable[Cell], axes: Sequence[Mapping[str, Any]]
) -> list[tuple[tuple[str, ...], list[Cell]]]:
    """Group cells by their labels on some axes, in the order of the labels on the axes; the last axis varies fastest.

    The time depends on the number of cells, not on the number of combinations of labels.
    """
    names = [axis["name"] for axis in axes]
    found: dict[tuple[str, ...], list[Cell]] = {}
    for cell in cells:
        found.setdefault(tuple(cell["labels"][name] for name in names), []).append(cell)
    places = [{label: place for place, label in enumerate(axis["labels"])} for axis in axes]
    return sorted(found.items(), key=lambda group: [at[label] for at, label in zip(places, group[0], strict=True)])
