"""The red banner: why numbers of the page mislead as a whole, from the notes of the run and from the scores."""

from __future__ import annotations

from collections.abc import Iterator

from expunge.report.content import Comparison, ModelResult, ReportContent, ReportWarning, Scenario
from expunge.report.formatting import column_key, format_list, format_number, get_score
from expunge.report.limit_parts import list_comparisons, name_place, shorten

#: RA or TA of Retrain has to be this many percentage points below the original's, and this many noise floors.
COLLAPSE_POINTS, COLLAPSE_FLOORS = 10.0, 3.0
#: The kind of a warning about a reference that learned less than the original did.
COLLAPSED = "collapsed-reference"


def list_warnings(content: ReportContent) -> list[ReportWarning]:
    """List the warnings of a report: those recorded for its models, then those that follow from its scores.

    Warnings of several models with one text are one warning with their places. A rule says nothing where the run has
    recorded a warning of its kind.

    Args:
        content: content of the report.

    Example:
        >>> from expunge.report import Comparison, ModelResult, ReportContent, RequestSummary, Scenario, read_scores
        >>> models = (
        ...     ModelResult("Original", "original", read_scores([{"name": "TA", "value": 90.0, "unit": "%"}])),
        ...     ModelResult("Retrain", "retrained", read_scores([{"name": "TA", "value": 10.0, "unit": "%"}])),
        ... )
        >>> scenario = Scenario("20 records", RequestSummary(20), (Comparison("dense", models),))
        >>> list_warnings(ReportContent("t", (scenario,)))[0].message
        'Retrain is far below the original: it may not have learned the task.'
    """
    places: dict[ReportWarning, dict[str, None]] = {}
    for place, label, warning in _list_recorded(content):
        places.setdefault(warning, {})[f"{label} ({place})"] = None
    found = [_add_places(warning, list(where)) for warning, where in places.items()]
    if not any(warning.code == COLLAPSED for warning in found):
        found += _find_collapsed_references(content)
    return found


def _list_recorded(content: ReportContent) -> Iterator[tuple[str, str, ReportWarning]]:
    for scenario, comparison in list_comparisons(content):
        for model in comparison.models:
            for warning in model.warnings:
                yield name_place(scenario, comparison), model.label, warning


def _add_places(warning: ReportWarning, where: list[str]) -> ReportWarning:
    explanation = f"{warning.explanation} Measured with: {format_list(shorten(where))}.".strip()
    return ReportWarning(warning.message, explanation, warning.code)


def _find_collapsed_references(content: ReportContent) -> list[ReportWarning]:
    lines = [
        f"{name_place(scenario, comparison)}: {text}"
        for scenario, comparison in list_comparisons(content)
        if (text := _describe_collapse(scenario, comparison))
    ]
    if not lines:
        return []
    return [
        ReportWarning(
            "Retrain is far below the original: it may not have learned the task.",
            "Every gap on this page is measured against Retrain, so none of them describes forgetting where Retrain "
            "did not learn. Forgetting a few records does not lower the accuracy on all others this far; check recipe, "
            f"learning rate, optimiser and split of the reference. {format_list(shorten(lines))}.",
            COLLAPSED,
        )
    ]


def _describe_collapse(scenario: Scenario, comparison: Comparison) -> str:
    original, reference = comparison.original, comparison.reference
    if original is None or reference is None:
        return ""
    floors = {column_key(name): value for name, value in comparison.noise_floors().items()}
    parts = []
    for name in ("RA", "TA"):
        before, after = _get_percent(original, name), _get_percent(reference, name)
        least = max(COLLAPSE_POINTS, COLLAPSE_FLOORS * floors.get(column_key(name), 0.0))
        if before is not None and after is not None and before - after >= least:
            parts.append(f"{name} {format_number(after, '%')} %, of the original {format_number(before, '%')} %")
    return format_list(parts)


def _get_percent(model: ModelResult, name: str) -> float | None:
    score = get_score(model.scores, name)
    return score.value if score is not None and score.unit == "%" else None
