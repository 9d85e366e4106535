"""The red banner: why numbers of the page mislead as a whole, from the notes of the run and from the scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from expunge.report.content import Comparison, ModelResult, ReportContent, ReportWarning, Scenario
from expunge.report.formatting import column_key, format_list, format_number, get_score
from expunge.report.limit_parts import list_comparisons, name_place, shorten
from expunge.report.values import ReportScore

from .gaps import Gap, find_largest_gaps, list_gaps

#: RA or TA of Retrain has to be more than this many percentage points, and noise floors, below the original's.
COLLAPSE_POINTS, COLLAPSE_FLOORS = 10.0, 2.0
#: What a rule says of one comparison; empty: nothing.
_Describe = Callable[[Scenario, Comparison], str]
#: The kind of a warning about a reference that learned less than the original did.
COLLAPSED = "reference-collapsed"
#: The kind of a warning about an original that the scores cannot tell from Retrain.
ORIGINAL_NEAR = "original-near-retrain"
#: What warnings of one kind have in common; their messages follow, with the numbers of each case.
_STATEMENTS = {
    "nothing-changed": ("A method changed nothing: its model is the original.", ""),
    "reference-not-retrained": ("The reference is not a retrained model.", ""),
    COLLAPSED: (
        "Retrain is far below the original: it may not have learned the task.",
        "Every gap on this page is measured against Retrain, so none of them describes forgetting where Retrain did "
        "not learn. Check recipe, learning rate, optimiser and split of the reference.",
    ),
    "recipe-assumed": ("The recipe of the original is not known; a default one was used.", ""),
    "near-chance": ("A model is near chance on its own training records.", ""),
    ORIGINAL_NEAR: (
        "The scores cannot tell the original from Retrain.",
        "Before anything was forgotten, no gap of the original to Retrain was larger than its noise. Small gaps of a "
        "method then do not show that it forgot anything. A larger forget set, or one of records that the model "
        "memorised, may show a difference.",
    ),
    "classes-reordered": ("The classes of a model and of the records are in different orders.", ""),
}


def list_warnings(content: ReportContent) -> list[ReportWarning]:
    """List the warnings of a report: those recorded for its models, then those that follow from its scores.

    Warnings of one kind (`code`) are one warning, which lists their messages with the places of each. A rule says
    nothing where the run has recorded a warning of its kind.

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
    groups: dict[str, dict[ReportWarning, dict[str, None]]] = {}
    for scenario, comparison in list_comparisons(content):
        for warning in (warning for model in comparison.models for warning in model.warnings):
            group = groups.setdefault(warning.code or warning.message, {})
            group.setdefault(warning, {})[name_place(scenario, comparison)] = None
    several = len(list_comparisons(content)) > 1
    found = [_join_warnings(group, several) for group in groups.values()]
    if not any(warning.code == COLLAPSED for warning in found):
        found += _find_by_scores(content, COLLAPSED, _describe_collapse)
    return found + _find_by_scores(content, ORIGINAL_NEAR, _describe_nearness)


def _join_warnings(group: Mapping[ReportWarning, Iterable[str]], several: bool) -> ReportWarning:
    """One warning of the warnings of a kind: what they have in common, then each message, with its places if needed."""
    first = next(iter(group))
    statement, general = _STATEMENTS.get(first.code, ("", ""))
    lines = []
    for warning, places in group.items():
        said = [warning.message] if statement else []
        text = ". ".join(part[0].upper() + part[1:].rstrip(".") for part in (*said, warning.explanation) if part)
        where = f"({format_list(shorten(list(places)))})" if several else ""
        lines.append(f"{text} {where}".strip())
    explanation = " ".join([general, *(f"{line}." for line in shorten(lines) if line)])
    return ReportWarning(statement or first.message, explanation.strip(), first.code)


def _find_by_scores(content: ReportContent, code: str, describe: _Describe) -> list[ReportWarning]:
    """One warning with a sentence for every comparison that has something to say; none if no comparison has."""
    lines = [
        f"{name_place(scenario, comparison)}: {text}"
        for scenario, comparison in list_comparisons(content)
        if (text := describe(scenario, comparison))
    ]
    if not lines:
        return []
    statement, explanation = _STATEMENTS[code]
    return [ReportWarning(statement, f"{explanation} {'. '.join(shorten(lines))}.", code)]


def _describe_collapse(scenario: Scenario, comparison: Comparison) -> str:
    original, reference = comparison.original, comparison.reference
    if original is None or reference is None:
        return ""
    floors = {column_key(name): value for name, value in comparison.noise_floors().items()}
    parts = []
    for name in ("RA", "TA"):
        before, after = _get_percent(original, name), _get_percent(reference, name)
        if before is None or after is None or before.value is None or after.value is None:
            continue
        floor = floors.get(column_key(name), 0.5 * (_half_width(before) + _half_width(after)))
        if before.value - after.value > max(COLLAPSE_POINTS, COLLAPSE_FLOORS * floor):
            texts = (format_number(score.value, "%") for score in (after, before))
            parts.append("{} {} %, of the original {} %".format(name, *texts))
    return format_list(parts)


def _describe_nearness(scenario: Scenario, comparison: Comparison) -> str:
    """The largest gaps of an original that is as near to Retrain as noise; empty if it is not, or if nobody can say."""
    original, reference = comparison.original, comparison.reference
    if original is None or reference is None or not comparison.unlearned:
        return ""
    gaps, measured = list_gaps(comparison, original), False
    for gap in gaps:
        before, after = (get_score(model.scores, gap.name) for model in (original, reference))
        intervals = [score for score in (before, after) if score is not None and score.interval is not None]
        measured = measured or gap.floor is not None or bool(intervals)
        if abs(gap.value) > _estimate_noise(gap, before, after, scenario.request.records):
            return ""
    if not measured:
        return ""
    what = "noise floor" if all(gap.floor is not None for gap in gaps) else "interval"
    largest = [f"{gap.name} {gap.text}{' points' if gap.unit == '%' else ''}" for gap in find_largest_gaps(gaps)]
    return f"the gaps of the original are within the {what}, the largest: {format_list(largest)}"


def _estimate_noise(gap: Gap, before: ReportScore | None, after: ReportScore | None, records: int) -> float:
    """The noise floor of a gap; with one seed, the mean half-width of the intervals.

    A score of D_f that has no interval (the legacy attack) gets the normal approximation of a fraction of its records.
    """
    if gap.floor is not None:
        return gap.floor
    scores = [score for score in (before, after) if score is not None]
    if any(score.interval is not None for score in scores):
        return sum(_half_width(score) for score in scores) / len(scores)
    if gap.unit != "%" or not records:
        return 0.0
    percent = sum(score.value or 0.0 for score in scores) / max(1, len(scores))
    return float(1.96 * (percent * (100.0 - percent) / records) ** 0.5)


def _get_percent(model: ModelResult, name: str) -> ReportScore | None:
    score = get_score(model.scores, name)
    return score if score is not None and score.unit == "%" else None


def _half_width(score: ReportScore) -> float:
    """Half the width of the interval of a score; 0 if it has none."""
    return 0.0 if score.interval is None else 0.5 * (score.interval[1] - score.interval[0])
