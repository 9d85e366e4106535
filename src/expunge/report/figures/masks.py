"""The figures of the masks: each distinct mask of a report is drawn once."""

from __future__ import annotations

import dataclasses
from typing import Any

from expunge.report.content import Comparison, ModelResult, ReportContent, Scenario
from expunge.report.formatting import format_list

from .panels import draw_density_bars


@dataclasses.dataclass
class _Group:
    """Models with one mask: their scenarios (by place), comparisons and models."""

    mask: object
    models: list[tuple[int, Comparison, ModelResult]]

    def accepts(self, model: ModelResult) -> bool:
        mask = model.hashes.get("mask")
        known = self.mask is None or mask is None or self.mask == mask
        return known and dict(self.models[0][2].density) == dict(model.density)


def draw_masks(content: ReportContent) -> list[dict[str, Any]]:
    """Draw each distinct mask once, in the first scenario that has it, and refer to it from the others.

    Masks are equal if their hashes are, and if their densities are where a model has no hash.

    Args:
        content: content of the report.

    Returns:
        For each scenario `drawn` (`label`, `note`, `figure`) and `shared` (`label`, and `id` and `title` of the
        scenario with the figure).
    """
    groups: list[_Group] = []
    for place, scenario in enumerate(content.scenarios):
        for comparison in scenario.comparisons:
            for model in comparison.models:
                if not model.density:
                    continue
                group = next((group for group in groups if group.accepts(model)), None)
                if group is None:
                    groups.append(group := _Group(model.hashes.get("mask"), []))
                group.mask = group.mask or model.hashes.get("mask")
                group.models.append((place, comparison, model))
    found: list[dict[str, Any]] = [{"drawn": [], "shared": []} for _ in content.scenarios]
    for number, group in enumerate(groups):
        first, comparison, model = group.models[0]
        for place in dict.fromkeys(place for place, _, _ in group.models):
            label, note = _name_models(content.scenarios[place], group, place)
            if place == first:
                figure = draw_density_bars(model.density, f"{label}, {note}", f"s{place}d{number}")
                found[place]["drawn"].append({"label": label, "note": note, "figure": figure})
            else:
                entry = {"label": f"{label}, {note}", "id": f"s{first}", "title": content.scenarios[first].title}
                found[place]["shared"].append(entry)
    return found


def _name_models(scenario: Scenario, group: _Group, place: int) -> tuple[str, str]:
    """The comparisons of a scenario with this mask, and their models: `all models` if all of them have it."""
    labels: dict[str, list[str]] = {}
    for other, comparison, model in group.models:
        if other == place:
            labels.setdefault(comparison.label, []).append(model.label)
    sizes = {comparison.label: len(comparison.models) for comparison in scenario.comparisons}
    if all(len(models) == sizes[label] for label, models in labels.items()):
        return format_list(labels), "all models"
    if len(labels) == 1:
        return next(iter(labels)), format_list(next(iter(labels.values())))
    return format_list(labels), "; ".join(f"{label}: {format_list(models)}" for label, models in labels.items())
