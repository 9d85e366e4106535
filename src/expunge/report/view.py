"""From content to what the template prints: texts, marks and figures, nothing left to decide."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from .content import Comparison, ModelResult, ReportContent, Scenario, Score
from .figures import confidence_panel, density_bars
from .formatting import (
    DASH,
    DIRECTIONS,
    GUARANTEES,
    PASSES,
    SECONDS,
    further_names,
    get_score,
    interval_end,
    key,
    listing,
    number,
    plural,
    score_names,
    selection,
    signed,
    spent,
)
from .provenance_tables import sheets

#: Class differences to the reference are coloured in full from this many percentage points on.
FULL_HEAT = 20.0


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of the score table: its text and the small lines under it."""

    value: str
    gap: str = ""
    within: bool = False
    interval: str = ""
    spread: str = ""
    share: str = ""
    reason: str = ""


def request_view(scenario: Scenario, place: int) -> dict[str, Any]:
    request = scenario.request
    return {
        "id": f"s{place}",
        "title": scenario.title,
        "records": plural(request.records, "record"),
        "retained": None if request.retained is None else plural(request.retained, "record"),
        "selection": selection(request, scenario.class_names),
        "hash": request.hash,
        "ids": request.first_ids,
        "more": max(0, request.records - len(request.first_ids)),
    }


def definitions(content: ReportContent) -> list[dict[str, str]]:
    models = [model for scenario in content.scenarios for model in scenario.models()]
    found = []
    for name in score_names(models):
        scores = [score for model in models if (score := get_score(model.scores, name)) is not None]
        text = next((score.definition for score in scores if score.definition), "")
        text = text or "The run gave no definition."
        direction = DIRECTIONS[scores[0].direction]
        found.append({"id": f"score-{key(name)}", "name": name, "text": text, "direction": direction})
    return found


def guarantees(content: ReportContent) -> list[tuple[str, str]]:
    used = {model.guarantee for scenario in content.scenarios for model in scenario.models()}
    return [(name, text) for name, text in GUARANTEES.items() if name in used]


def scenario_view(scenario: Scenario, place: int) -> dict[str, Any]:
    models = scenario.models()
    every = score_names(models)
    further = further_names(every)
    names = [name for name in every if name not in further]
    columns = []
    for name in names:
        score = next(score for model in models if (score := get_score(model.scores, name)) is not None)
        columns.append({"id": f"score-{key(name)}", "name": name, "unit": score.unit, "text": score.definition,
                        "direction": DIRECTIONS[score.direction]})  # fmt: skip
    return {
        "id": f"s{place}",
        "title": scenario.title,
        "columns": columns,
        "accuracy_on": scenario.accuracy_on,
        "notes": _notes(scenario),
        "comparisons": [
            {
                **_comparison(scenario, comparison, names, f"s{place}c{number_}"),
                "further": _further(comparison, further),
            }
            for number_, comparison in enumerate(scenario.comparisons)
        ],
    }


def _notes(scenario: Scenario) -> list[str]:
    """Why there is no noise floor, where there is none; then the notes of the models, each once."""
    reasons = {
        "the reference is one retrained model, and one seed has no spread; there is no noise floor to hold these "
        "gaps against.": [c.label for c in scenario.comparisons if c.reference and not c.noise()],
        "there is no retrained reference, so there are no gaps.": [
            c.label for c in scenario.comparisons if c.reference is None
        ],
    }
    notes = {note: None for model in scenario.models() for note in model.notes}
    return [*(f"{listing(labels)}: {reason}" for reason, labels in reasons.items() if labels), *notes]


def _comparison(scenario: Scenario, comparison: Comparison, names: Sequence[str], identity: str) -> dict[str, Any]:
    ordered = [m for m in (comparison.original, comparison.reference) if m is not None] + list(comparison.unlearned)
    return {
        "id": identity,
        "label": comparison.label,
        "rows": [_row(model, comparison, names) for model in ordered],
        "floor": _floor(comparison, names),
        "seeds": _seeds(comparison),
        "classes": _classes(scenario, comparison),
        "panels": _panels(comparison, identity),
        "masks": _masks(comparison, identity),
        "state": _state(comparison),
        "provenance": sheets(ordered),
    }


def _further(comparison: Comparison, names: Sequence[str]) -> dict[str, Any] | None:
    """Scores that only some models have: a row a score, a column a model that has any of them."""
    ordered = [m for m in (comparison.original, comparison.reference) if m is not None] + list(comparison.unlearned)
    models = [m for m in ordered if any(get_score(m.scores, name) is not None for name in names)]
    rows = []
    for name in names:
        scores = [get_score(model.scores, name) for model in models]
        first = next((score for score in scores if score is not None), None)
        if first is not None:
            cells = [_cell(model, comparison.reference, name, None) for model in models]
            direction = DIRECTIONS[first.direction]
            rows.append({"id": f"score-{key(name)}", "name": name, "unit": first.unit, "direction": direction,
                         "text": first.definition, "cells": cells})  # fmt: skip
    return {"models": [model.label for model in models], "rows": rows} if rows else None


def _seeds(comparison: Comparison) -> int:
    reference = comparison.reference
    return 0 if reference is None else max((score.seeds for score in reference.scores.values()), default=1)


def _row(model: ModelResult, comparison: Comparison, names: Sequence[str]) -> dict[str, Any]:
    floor = {key(name): value for name, value in comparison.noise().items()}
    reference = comparison.reference
    return {
        "label": model.label,
        "role": model.role,
        "guarantee": model.guarantee,
        "cells": [_cell(model, reference, name, floor.get(key(name))) for name in names],
        "cost": [
            _cost(model, _passes(model), _passes(reference), "passes"),
            _cost(model, _seconds(model), _seconds(reference), "s"),
        ],
    }


def _passes(model: ModelResult | None) -> float | None:
    return None if model is None else spent(model, PASSES, model.passes)


def _seconds(model: ModelResult | None) -> float | None:
    return None if model is None else spent(model, SECONDS, model.seconds)


def _cell(model: ModelResult, reference: ModelResult | None, name: str, floor: float | None) -> Cell:
    score = get_score(model.scores, name)
    if score is None or score.value is None:
        return Cell(DASH, reason=_why(model, score, name))
    score = _with_reference(score, reference)
    own_gap = model.role == "retrained" or key(name).startswith("disparity")
    gap = None if own_gap else score.signed_gap
    ends = [interval_end(end, score.unit) for end in score.interval or ()]
    return Cell(
        number(score.value, score.unit),
        gap="" if gap is None else signed(gap, score.unit),
        within=gap is not None and floor is not None and abs(gap) <= floor,
        interval=" to ".join(ends),
        spread="" if score.spread is None else number(score.spread, score.unit),
    )


def _with_reference(score: Score, reference: ModelResult | None) -> Score:
    """The score with the reference's own value where the run left it out."""
    if score.reference is not None or reference is None:
        return score
    other = get_score(reference.scores, score.name)
    return score if other is None else dataclasses.replace(score, reference=other.value)


def _why(model: ModelResult, score: Score | None, name: str) -> str:
    if score is not None and score.missing:
        return score.missing
    if key(name).startswith("disparity") and model.role == "retrained":
        return "is the reference"
    if key(name).startswith("disparity") and model.role == "original":
        return "nothing was forgotten"
    return "not measured" if score is None else "no value, no reason given"


def _cost(model: ModelResult, value: float | None, whole: float | None, unit: str) -> Cell:
    if value is None:
        return Cell(DASH, reason="no method" if model.role == "original" else "not measured")
    share = ""
    if whole and model.role == "unlearned":
        part = 100 * value / whole
        share = f"{part:.0f} %" if part >= 1 else "< 1 %"
    return Cell(number(value, unit), share=share)


def _floor(comparison: Comparison, names: Sequence[str]) -> list[str] | None:
    """The noise floor of each column, or None where the reference is one model."""
    noise = {key(name): value for name, value in comparison.noise().items()}
    if not noise or comparison.reference is None:
        return None
    units = {key(name): score.unit for model in comparison.models for name, score in model.scores.items()}
    return [number(noise[key(n)], units.get(key(n), "")) if key(n) in noise else DASH for n in names]


def _classes(scenario: Scenario, comparison: Comparison) -> dict[str, Any] | None:
    models = [m for m in (comparison.original, *comparison.unlearned, comparison.reference) if m and m.class_accuracy]
    if not models:
        return None
    reference = comparison.reference
    base = reference.class_accuracy if reference is not None else ()
    rows = []
    for index, name in enumerate(scenario.class_names):
        against = base[index] if base else None
        cells = [_heat(model.class_accuracy[index], against, model is reference) for model in models]
        rows.append({"name": name, "forgotten": index == scenario.request.forgotten_class, "cells": cells})
    return {"models": [model.label for model in models], "rows": rows, "against": bool(base)}


def _heat(value: float | None, against: float | None, is_reference: bool) -> dict[str, Any]:
    cell: dict[str, Any] = {"value": DASH if value is None else f"{value:.1f}", "side": "", "alpha": "0", "gap": ""}
    if value is None or against is None or is_reference:
        return cell
    gap = value - against
    alpha = min(1.0, abs(gap) / FULL_HEAT) * 0.5
    if alpha >= 0.01:
        cell.update(side="below" if gap < 0 else "above", alpha=f"{alpha:.2f}")
    cell["gap"] = f"{signed(gap, '%')} points against Retrain"
    return cell


def _panels(comparison: Comparison, identity: str) -> list[dict[str, Any]]:
    models = [m for m in (comparison.original, *comparison.unlearned, comparison.reference) if m and m.confidence]
    reference = comparison.reference
    panels = []
    for place, model in enumerate(models):
        outline = None if reference is None or model is reference else reference.confidence
        figure = confidence_panel(model.label, model.confidence, outline, f"{identity}h{place}")
        note = {"original": "before", "retrained": "reference", "unlearned": "after"}[model.role]
        panels.append({"label": model.label, "note": note, "figure": figure})
    return panels


def _masks(comparison: Comparison, identity: str) -> list[dict[str, Any]]:
    """One figure for each distinct mask, with the models that share it."""
    groups: list[tuple[Any, list[ModelResult]]] = []
    for model in comparison.models:
        if not model.density:
            continue
        same = model.hashes.get("mask") or tuple(model.density.items())
        group = next((models for other, models in groups if other == same), None)
        if group is None:
            groups.append((same, [model]))
        else:
            group.append(model)
    found = []
    for place, (_, models) in enumerate(groups):
        everyone = len(models) == len(comparison.models)
        label = "all models" if everyone else listing(model.label for model in models)
        found.append({"label": label, "figure": density_bars(models[0].density, label, f"{identity}d{place}")})
    return found


_WORDS = {
    "rewrote": ("rewritten", "good"),
    "dropped": ("dropped", "good"),
    "still_remembers": ("still remembers", "held"),
}


def _state(comparison: Comparison) -> dict[str, Any] | None:
    models = [m for m in (*comparison.unlearned, comparison.reference) if m is not None and m.state is not None]
    states = [model.state for model in models if model.state is not None]
    kinds = list(dict.fromkeys(k for s in states for k in (*s.rewrote, *s.still_remembers, *s.dropped)))
    if not kinds:
        return None
    rows = []
    for kind in kinds:
        meaning = next((s.meaning[kind] for s in states if kind in s.meaning), "")
        cells = []
        for state in states:
            hit = next((words for field, words in _WORDS.items() if kind in getattr(state, field)), None)
            cells.append({"text": hit[0], "css": hit[1]} if hit else {"text": "not present", "css": "none"})
        rows.append({"name": kind.replace("_", " "), "meaning": meaning, "cells": cells})
    return {"models": [model.label for model in models], "rows": rows}
