"""The summary box: what was asked, what was made, what is guaranteed, how far it is from Retrain, what is unknown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from expunge.core.outcome import FROM_FORGET, GUARANTEES
from expunge.report.content import Comparison, InfluenceState, ModelResult, ReportContent, Scenario
from expunge.report.formatting import (
    describe_model,
    describe_selection,
    format_count,
    format_list,
    format_number,
    pluralise,
)

from .gaps import Gap, compare_with_original, find_largest_gaps, list_gaps

#: What no report shows, in a few words; "What this does not show" has the reasons.
NOT_SHOWN = (
    "that the records were forgotten (weights cannot prove it)",
    "what a stronger attack would find",
    "copies, backups and earlier checkpoints of model and data",
)


def build_summary(content: ReportContent, limits: int) -> dict[str, Any]:
    """Build the summary box: facts of the report, and a row for each model that was made and for each original.

    The original has a row where its gaps to Retrain are known: they are what the gaps of a method compare with.

    Args:
        content: content of the report.
        limits: the number of limits that the page lists.
    """
    rows = [
        _build_row(scenario, comparison, model)
        for scenario in content.scenarios
        for comparison in scenario.comparisons
        for model in (*_list_originals(comparison), *list_results(comparison))
    ]
    results = [row for row in rows if row["role"] != "original"]
    single = results[0] if len(results) == 1 else None
    return {
        "requests": [_describe_request(scenario) for scenario in content.scenarios],
        "date": content.created,
        "model": describe_model(content),
        "rows": rows,
        "single": single,
        "before": next((row for row in rows if row is not single), None) if single else None,
        "several_requests": len(content.scenarios) > 1,
        "several_originals": any(len(scenario.comparisons) > 1 for scenario in content.scenarios),
        "not_shown": NOT_SHOWN,
        "limits": limits,
    }


def list_results(comparison: Comparison) -> Sequence[ModelResult]:
    """List the models that a comparison is about: the unlearned ones, or Retrain if it is the only method."""
    reference = comparison.reference
    return comparison.unlearned or (() if reference is None else (reference,))


def _list_originals(comparison: Comparison) -> Sequence[ModelResult]:
    """The original of a comparison, if it has gaps to Retrain and there are models to compare them with."""
    original = comparison.original
    return () if original is None or not comparison.unlearned or not list_gaps(comparison, original) else (original,)


def _describe_request(scenario: Scenario) -> dict[str, str]:
    request = scenario.request
    selection = describe_selection(request, scenario.class_names)
    count = format_count(request.records)
    records = "" if scenario.title.startswith(f"{count} ") else f": {pluralise(request.records, 'record')}"
    return {"title": scenario.title, "records": records, "selection": selection}


def _build_row(scenario: Scenario, comparison: Comparison, model: ModelResult) -> dict[str, Any]:
    weights = model.hashes.get("weights")
    gaps = [] if model.role == "retrained" else list_gaps(comparison, model)
    is_original = model.role == "original"
    return {
        "request": scenario.title,
        "original": comparison.label,
        "role": model.role,
        "method": f"{model.label} (before)" if is_original else model.label,
        "guarantee": model.guarantee,
        "start": model.relative_to,
        "guarantee_text": GUARANTEES.get(model.guarantee, ""),
        "file": model.file,
        "file_hash": model.file_hash,
        "weights": weights if isinstance(weights, str) else "",
        "seeds": max((score.seeds for score in model.scores.values()), default=1),
        "gaps": [_describe_gap(gap) for gap in find_largest_gaps(gaps)],
        "nearer": compare_with_original(comparison, model) if model.role == "unlearned" else "",
        "no_gaps": "it is the reference" if model.role == "retrained" else "not measured",
        "untouched": "all of it: it was trained on them" if is_original else describe_untouched(model.state),
    }


def _describe_gap(gap: Gap) -> dict[str, Any]:
    floor = "no noise floor: one seed" if gap.floor is None else f"noise floor {format_number(gap.floor, gap.unit)}"
    unit = " points" if gap.unit == "%" else ""
    return {"name": gap.name, "gap": gap.text, "unit": unit, "floor": floor, "within": gap.is_within}


def describe_untouched(state: InfluenceState | None) -> str:
    """Describe what is still as training on D_f left it: all of a kind of state, or a part of it.

    Args:
        state: of a model; None if it was not recorded.

    Example:
        >>> from expunge.core.outcome import Extent
        >>> extents = {"weights": Extent("partly rewritten", 4, 2, 200, 3)}
        >>> describe_untouched(InfluenceState(("weights",), carried=("mask",), extents=extents))
        'mask; partly: weights (2 of 4 tensors, 1.5 % of the entries changed)'
        >>> describe_untouched(InfluenceState(("weights",), recomputed=()))  # FT
        'no state as a whole; weights: changed from what was trained on D_f'
        >>> describe_untouched(InfluenceState(("weights",), recomputed=("weights",)))  # Retrain
        'nothing: all recorded state was made without them'
    """
    if state is None:
        return "not recorded"
    whole = format_list(name.replace("_", " ") for name in state.carried)
    parts = format_list(f"{name.replace('_', ' ')} ({text})" for name, text in state.partly.items())
    changed = format_list(name.replace("_", " ") for name in state.changed)
    found = [text for text in (whole, f"partly: {parts}" if parts else "") if text]
    if changed:
        found = [*(found or ["no state as a whole"]), f"{changed}: {FROM_FORGET}"]
    if found:
        return "; ".join(found)
    if not (*state.rewrote, *state.dropped):
        return "not recorded"
    known = state.recomputed is not None
    return "nothing: all recorded state was made without them" if known else "no state as a whole"
