"""What all figures of results share: the selection of labels, and the panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from expunge.core.errors import ConfigError
from expunge.experiments.config.selections import check_labels

from ..groups import group_by_labels
from ..summary import row_label

#: Panels of one figure.
PANELS = 400


def check_selection(results: Mapping[str, Any], only: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return the labels to show by axis.

    Raises:
        ConfigError: an axis or a label is not in the results.
    """
    check_labels({axis["name"]: axis["labels"] for axis in results["axes"]}, only)
    return {name: list(wanted) for name, wanted in only.items()}


def group_panels(
    results: Mapping[str, Any], cells: Sequence[Mapping[str, Any]], roles: Mapping[str, str]
) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """Group cells by case and sparsity; each case is a row of panels."""
    cases = [axis for axis in results["axes"] if axis["role"] == "case"]
    names = list(dict.fromkeys(row_label(cell, roles, "sparsity") for cell in cells))
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for choice, own in group_by_labels(cells, cases):
        head = ", ".join(choice)
        found.update({(head, name): [] for name in names})
        if len(found) > PANELS:
            raise ConfigError(f"the figure has more than {PANELS} panels", hint="choose labels with --only axis=label")
        for cell in own:
            found[head, row_label(cell, roles, "sparsity")].append(cell)
    return found
