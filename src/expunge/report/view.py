"""Values of the template: formatted texts, marks and figures, made from the content."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from expunge.core.outcome import FROM_FORGET, GUARANTEES, MaskChange, sum_mask_changes
from expunge.core.show import repr_fields, shorten_names
from expunge.evaluation.facts import DIRECTIONS

from .content import Comparison, ModelResult, ReportContent, Scenario
from .figures import draw_confidence_panel, draw_gap_panels
from .formatting import (
    DASH,
    column_key,
    describe_selection,
    find_facts,
    format_count,
    format_interval_end,
    format_list,
    format_number,
    format_signed,
    get_cost,
    get_score,
    normalise_name,
    order_score_names,
    pluralise,
    select_further_names,
)
from .provenance_tables import build_provenance_tables
from .summary.gaps import add_reference
from .values import ReportScore

#: Differences to the reference of this many percentage points or more have the full colour.
FULL_COLOUR_GAP = 20.0
#: The direction of a score in the head of its column: an arrow and a word.
DIRECTION_MARKS = {"higher": "↑ higher", "lower": "↓ lower", "reference": "→ Retrain"}


@dataclasses.dataclass(frozen=True)
class TableCell:
    """A cell of the score table: its value and the small lines under it."""

    value: str
    gap: str = ""
    within: bool = False
    interval: str = ""
    spread: str = ""
    fraction: str = ""
    steps: str = ""
    reason: str = ""

    __repr__ = repr_fields


def build_request_view(scenario: Scenario, place: int) -> dict[str, Any]:
    """Build the card of a request."""
    request = scenario.request
    return {
        "id": f"s{place}",
        "title": scenario.title,
        "records": pluralise(request.records, "record"),
        "retained": None if request.retained is None else pluralise(request.retained, "record"),
        "selection": describe_selection(request, scenario.class_names),
        "corrected": request.selection.get("by") == "correct",
        "hash": request.hash,
        "ids": request.first_ids,
        "more": max(0, request.records - len(request.first_ids)),
    }


def collect_definitions(content: ReportContent) -> list[dict[str, str]]:
    """Collect name, direction and definition of every score."""
    models = [model for scenario in content.scenarios for model in scenario.models()]
    found = []
    for name in order_score_names(models):
        scores = [score for model in models if (score := get_score(model.scores, name)) is not None]
        text = next((score.definition for score in scores if score.definition), "")
        text = text or "No definition was recorded."
        direction = DIRECTIONS[scores[0].direction]
        found.append({"id": f"score-{normalise_name(name)}", "name": name, "text": text, "direction": direction})
    return found


def collect_guarantees(content: ReportContent) -> list[tuple[str, str]]:
    """Collect the guarantees of the models with their meaning."""
    used = {model.guarantee for scenario in content.scenarios for model in scenario.models()}
    return [(name, text) for name, text in GUARANTEES.items() if name in used]


def build_scenario_view(scenario: Scenario, place: int, masks: dict[str, Any] | None = None) -> dict[str, Any]:
    """Build the section of a scenario: gaps, columns, notes, comparisons and masks (from `draw_masks`)."""
    models = scenario.models()
    all_names = order_score_names(models)
    further = select_further_names(all_names)
    names = [name for name in all_names if name not in further]
    columns = []
    for name in names:
        score = next(score for model in models if (score := get_score(model.scores, name)) is not None)
        identity, direction = f"score-{normalise_name(name)}", DIRECTIONS[score.direction]
        columns.append({"id": identity, "name": name, "unit": score.unit, "text": score.definition,
                        "direction": direction, "mark": DIRECTION_MARKS[score.direction]})  # fmt: skip
    return {
        "id": f"s{place}",
        "title": scenario.title,
        "columns": columns,
        "accuracy_on": scenario.accuracy_on,
        "gaps": draw_gap_panels(scenario, f"s{place}"),
        "has_floor": any(comparison.noise_floors() for comparison in scenario.comparisons),
        "masks": masks or {"drawn": [], "shared": []},
        "unmasked": [c.label for c in scenario.comparisons if not any(model.density for model in c.models)],
        "notes": _collect_notes(scenario),
        "comparisons": [
            {
                **_build_comparison_view(scenario, comparison, names, f"s{place}c{index}"),
                "further": _build_further_table(comparison, further),
            }
            for index, comparison in enumerate(scenario.comparisons)
        ],
    }


def _collect_notes(scenario: Scenario) -> list[str]:
    """Collect the reasons for missing noise floors, then the notes of the models, without duplicates."""
    reasons = {
        "the reference was trained with one seed, so there is no noise floor to compare these gaps with.": [
            c.label for c in scenario.comparisons if c.reference and not c.noise_floors()
        ],
        "there is no retrained reference, so there are no gaps.": [
            c.label for c in scenario.comparisons if c.reference is None
        ],
    }
    notes = {note: None for model in scenario.models() for note in model.notes}
    return [*(f"{format_list(labels)}: {reason}" for reason, labels in reasons.items() if labels), *notes]


def _build_comparison_view(
    scenario: Scenario, comparison: Comparison, names: Sequence[str], identity: str
) -> dict[str, Any]:
    ordered = [m for m in (comparison.original, comparison.reference) if m is not None] + list(comparison.unlearned)
    return {
        "id": identity,
        "label": comparison.label,
        "rows": [_build_row(model, comparison, names) for model in ordered],
        "floor": _format_floors(comparison, names),
        "seeds": _count_seeds(comparison),
        "classes": _build_class_table(scenario, comparison),
        "panels": _draw_panels(comparison, identity),
        "masks": _build_mask_tables(comparison),
        "state": _build_state_table(comparison),
        "provenance": build_provenance_tables(ordered),
    }


def _build_further_table(comparison: Comparison, names: Sequence[str]) -> dict[str, Any] | None:
    """Build the table of scores that only some models have: one row a score, one column a model that has any."""
    ordered = [m for m in (comparison.original, comparison.reference) if m is not None] + list(comparison.unlearned)
    models = [m for m in ordered if any(get_score(m.scores, name) is not None for name in names)]
    rows = []
    for name in names:
        scores = [get_score(model.scores, name) for model in models]
        first = next((score for score in scores if score is not None), None)
        if first is not None:
            cells = [_build_cell(model, comparison.reference, name, None) for model in models]
            direction = DIRECTIONS[first.direction]
            identity = f"score-{normalise_name(name)}"
            rows.append({"id": identity, "name": name, "unit": first.unit, "direction": direction,
                         "text": first.definition, "cells": cells})  # fmt: skip
    return {"models": [model.label for model in models], "rows": rows} if rows else None


def _count_seeds(comparison: Comparison) -> int:
    reference = comparison.reference
    if reference is None:
        return 0
    return max([comparison.references, *(score.seeds for score in reference.scores.values())], default=1)


def _build_row(model: ModelResult, comparison: Comparison, names: Sequence[str]) -> dict[str, Any]:
    floor = {column_key(name): value for name, value in comparison.noise_floors().items()}
    reference = comparison.reference
    return {
        "label": model.label,
        "role": model.role,
        "guarantee": model.guarantee,
        "cells": [_build_cell(model, reference, name, floor.get(column_key(name))) for name in names],
        "cost": [
            dataclasses.replace(
                _build_cost_cell(model, _get_passes(model), _get_passes(reference), "passes"),
                steps=_describe_steps(model.optimiser_steps),
            ),
            _build_cost_cell(model, _get_seconds(model), _get_seconds(reference), "s"),
        ],
    }


def _describe_steps(count: float | None) -> str:
    """The optimiser steps of a method, as a mean over its seeds; empty if they are not recorded."""
    if count is None:
        return ""
    return pluralise(int(count), "step") if count == int(count) else f"{count:.1f} steps"


def _get_passes(model: ModelResult | None) -> float | None:
    return None if model is None else get_cost(model, "Passes", model.passes)


def _get_seconds(model: ModelResult | None) -> float | None:
    return None if model is None else get_cost(model, "RTE", model.seconds)


def _build_cell(model: ModelResult, reference: ModelResult | None, name: str, floor: float | None) -> TableCell:
    score = get_score(model.scores, name)
    if score is None or score.value is None:
        return TableCell(DASH, reason=_explain_missing(model, score, name))
    score = add_reference(score, reference)
    no_gap = model.role == "retrained" or bool(find_facts(name).averages)
    gap = None if no_gap else score.signed_gap
    ends = [format_interval_end(end, score.unit) for end in score.interval or ()]
    return TableCell(
        format_number(score.value, score.unit),
        gap="" if gap is None else format_signed(gap, score.unit),
        within=gap is not None and floor is not None and abs(gap) <= floor,
        interval=" to ".join(ends),
        spread="" if score.spread is None else format_number(score.spread, score.unit),
    )


def _explain_missing(model: ModelResult, score: ReportScore | None, name: str) -> str:
    if score is not None and score.missing:
        return score.missing
    if find_facts(name).averages and model.role in ("retrained", "original"):
        return "is the reference" if model.role == "retrained" else "nothing was forgotten"
    return "not measured" if score is None else "no reason recorded"


def _build_cost_cell(model: ModelResult, value: float | None, retrain: float | None, unit: str) -> TableCell:
    if value is None:
        return TableCell(DASH, reason="no method" if model.role == "original" else "not measured")
    fraction = ""
    if retrain and model.role == "unlearned":
        percent = 100 * value / retrain
        fraction = f"{percent:.0f} %" if percent >= 1 else "< 1 %"
    return TableCell(format_number(value, unit), fraction=fraction)


def _format_floors(comparison: Comparison, names: Sequence[str]) -> list[str] | None:
    """Format the noise floor of each column; None if the reference was trained with one seed."""
    noise = {column_key(name): value for name, value in comparison.noise_floors().items()}
    if not noise or comparison.reference is None:
        return None
    units = {column_key(name): score.unit for model in comparison.models for name, score in model.scores.items()}
    return [format_number(noise[key], units.get(key, "")) if key in noise else DASH for key in map(column_key, names)]


def _build_class_table(scenario: Scenario, comparison: Comparison) -> dict[str, Any] | None:
    models = [m for m in (comparison.original, *comparison.unlearned, comparison.reference) if m and m.class_accuracy]
    if not models:
        return None
    reference = comparison.reference
    base = reference.class_accuracy if reference is not None else ()
    rows = []
    for index, name in enumerate(scenario.class_names):
        against = base[index] if base else None
        cells = [_build_class_cell(model.class_accuracy[index], against, model is reference) for model in models]
        rows.append({"name": name, "forgotten": index == scenario.request.forgotten_class, "cells": cells})
    return {"models": [model.label for model in models], "rows": rows, "against": bool(base)}


def _build_class_cell(value: float | None, against: float | None, is_reference: bool) -> dict[str, Any]:
    cell: dict[str, Any] = {"value": DASH if value is None else f"{value:.1f}", "side": "", "alpha": "0", "gap": ""}
    if value is None or against is None or is_reference:
        return cell
    gap = value - against
    alpha = min(1.0, abs(gap) / FULL_COLOUR_GAP) * 0.5
    if alpha >= 0.01:
        cell.update(side="below" if gap < 0 else "above", alpha=f"{alpha:.2f}")
    cell["gap"] = f"{format_signed(gap, '%')} points against Retrain"
    return cell


def _draw_panels(comparison: Comparison, identity: str) -> list[dict[str, Any]]:
    models = [m for m in (comparison.original, *comparison.unlearned, comparison.reference) if m and m.confidence]
    reference = comparison.reference
    panels = []
    for place, model in enumerate(models):
        outline = None if reference is None or model is reference else reference.confidence
        figure = draw_confidence_panel(model.label, model.confidence, outline, f"{identity}h{place}")
        note = {"original": "", "retrained": "reference", "unlearned": "unlearned"}[model.role]
        panels.append({"label": model.label, "note": note, "figure": figure})
    return panels


def _build_mask_tables(comparison: Comparison) -> list[dict[str, Any]]:
    """Build a table for each mask that is not the original's: density by layer before and after, and what changed."""
    tables: dict[tuple[MaskChange, ...], list[str]] = {}
    for model in (comparison.reference, *comparison.unlearned):
        if model is not None and model.state is not None and model.state.masks:
            tables.setdefault(model.state.masks, []).append(model.label)
    return [
        {
            "label": format_list(labels),
            "rows": [
                {
                    "name": change.name,
                    "weights": format_count(change.weights),
                    "before": f"{change.before / max(1, change.weights):.4f}",
                    "after": f"{change.after / max(1, change.weights):.4f}",
                    "kept": format_count(change.newly_kept),
                    "pruned": format_count(change.newly_pruned),
                    "iou": f"{change.iou:.3f}",
                }
                for change in (*changes, *([sum_mask_changes(changes, "together")] if len(changes) > 1 else []))
            ],
        }
        for changes, labels in tables.items()
    ]


_STATE_LABELS = {
    "rewrote": ("rewritten", "changed"),
    "dropped": ("dropped", "changed"),
    "carried": ("unchanged since training on D_f", "dependent"),
}


def _build_state_table(comparison: Comparison) -> dict[str, Any] | None:
    models = [m for m in (*comparison.unlearned, comparison.reference) if m is not None and m.state is not None]
    states = [model.state for model in models if model.state is not None]
    names = list(dict.fromkeys(name for s in states for name in (*s.rewrote, *s.partly, *s.carried, *s.dropped)))
    if not names:
        return None
    rows = []
    for name in names:
        meaning = next((s.meaning[name] for s in states if name in s.meaning), "")
        cells = []
        for state in states:
            label = next((label for field, label in _STATE_LABELS.items() if name in getattr(state, field)), None)
            if name in state.partly:
                cells.append({"text": f"partly rewritten ({state.partly[name]})", "css": "dependent", "note": ""})
            else:
                text, css = label or ("not present", "none")
                extent = state.extents.get(name)
                note = shorten_names(extent.names) if label and extent is not None and extent.names else ""
                if extent is not None and extent.follows_forget:
                    css, note = "dependent", "; ".join(filter(None, (note, extent.describe_source())))
                if name in state.changed:
                    note = "; ".join(filter(None, (note, FROM_FORGET)))
                cells.append({"text": text, "css": css, "note": note})
        rows.append({"name": name.replace("_", " "), "meaning": meaning, "cells": cells})
    return {"models": [model.label for model in models], "rows": rows}
