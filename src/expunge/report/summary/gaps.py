"""The gaps of models to Retrain, beside their noise floors, worst first."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from expunge.core.show import repr_fields
from expunge.evaluation.seeds import mean
from expunge.report.content import Comparison, ModelResult, Scenario
from expunge.report.formatting import (
    column_key,
    find_facts,
    format_number,
    format_signed,
    get_score,
    order_score_names,
)
from expunge.report.values import ReportScore


@dataclasses.dataclass(frozen=True)
class Gap:
    """The gap of one score of one model to Retrain.

    Attributes:
        model, comparison: labels.
        name, unit: of the score.
        value: value minus Retrain's value, in the unit of the score.
        floor: the noise floor; None with one seed.
    """

    model: str
    comparison: str
    name: str
    unit: str
    value: float
    floor: float | None

    __repr__ = repr_fields

    @property
    def scale(self) -> float:
        """What a value is multiplied by to be a percentage point: 100 for a fraction such as the AUC."""
        return 1.0 if self.unit == "%" else 100.0

    @property
    def points(self) -> float:
        """The gap in percentage points."""
        return self.scale * self.value

    @property
    def floor_points(self) -> float | None:
        """The noise floor in percentage points."""
        return None if self.floor is None else self.scale * self.floor

    @property
    def is_within(self) -> bool:
        """Whether the gap is no larger than the noise floor."""
        return self.floor is not None and abs(self.value) <= self.floor

    @property
    def text(self) -> str:
        """The gap, in the unit of the table."""
        return format_signed(self.value, self.unit)


def add_reference(score: ReportScore, reference: ModelResult | None) -> ReportScore:
    """Add the reference's value to a score without a reference value."""
    if score.reference is not None or reference is None:
        return score
    other = get_score(reference.scores, score.name)
    return score if other is None else dataclasses.replace(score, reference=other.value)


def select_gap_names(models: Iterable[ModelResult]) -> list[str]:
    """Select the scores whose gaps are compared: of the main table, in % or in [0, 1], best where Retrain is."""
    models = list(models)
    found = []
    for name in order_score_names(models):
        facts = find_facts(name)
        scores = [score for model in models if (score := get_score(model.scores, name)) is not None]
        comparable = scores[0].unit == "%" or (scores[0].unit == "" and not facts.averages)
        if facts.table == "main" and facts.direction == "reference" and comparable:
            found.append(name)
    return found


def list_gaps(comparison: Comparison, model: ModelResult) -> list[Gap]:
    """List the gaps of a model to the reference of its comparison, in the order of the table."""
    floors = {column_key(name): value for name, value in comparison.noise_floors().items()}
    found = []
    for name in select_gap_names(comparison.models):
        score = get_score(model.scores, name)
        value = None if score is None else add_reference(score, comparison.reference).signed_gap
        if score is not None and value is not None:
            found.append(Gap(model.label, comparison.label, name, score.unit, value, floors.get(column_key(name))))
    return found


def find_largest_gaps(gaps: Iterable[Gap], most: int = 2) -> list[Gap]:
    """Find the largest gaps, in percentage points; those beyond their noise floor come first."""
    return sorted(gaps, key=lambda gap: (gap.is_within, -abs(gap.points)))[:most]


def rank_models(scenario: Scenario) -> list[tuple[Comparison, ModelResult, list[Gap]]]:
    """List the unlearned models of a scenario and their gaps, worst first: by the mean absolute gap in points."""
    found = [(c, model, gaps) for c in scenario.comparisons for model in c.unlearned if (gaps := list_gaps(c, model))]
    return sorted(found, key=lambda entry: -_average(entry[2]))


def compare_with_original(comparison: Comparison, model: ModelResult) -> str:
    """Say whether a model is nearer to Retrain than the original was: by the mean absolute gap, in points.

    Only scores that have a gap for both count. A difference of the means is noise if it is no larger than the mean of
    the noise floors; without them, nobody can tell, and the words say so.

    Args:
        comparison: of the model.
        model: an unlearned model.

    Returns:
        A few words with both means; empty if the original or Retrain was not scored.

    Example:
        >>> from expunge.report import read_scores
        >>> def model(label, role, value):
        ...     return ModelResult(label, role, read_scores([{"name": "UA", "value": value, "unit": "%"}]))
        >>> models = (model("Original", "original", 0.0), model("Retrain", "retrained", 5.0))
        >>> compare_with_original(Comparison("dense", models), model("FT", "unlearned", 4.0))
        'mean 1.00 points, nearer than the original (5.00); without a noise floor, this may be chance'
    """
    pairs = _pair_with_original(comparison, model)
    if not pairs:
        return ""
    own, before = (_average(gaps) for gaps in zip(*pairs, strict=True))
    floors = [gap.floor_points for gap, _ in pairs]
    noise = mean([floor for floor in floors if floor is not None]) if None not in floors else None
    texts = [format_number(value, "%") for value in (own, before)]
    if noise is not None and abs(own - before) <= noise and texts[0] != texts[1]:
        word = "as near as the original within noise"
    else:
        word = "as near as" if texts[0] == texts[1] else "nearer than" if own < before else "farther than"
        word += " the original"
    doubt = "; without a noise floor, this may be chance" if noise is None and texts[0] != texts[1] else ""
    return f"mean {texts[0]} points, {word} ({texts[1]}){doubt}"


def _pair_with_original(comparison: Comparison, model: ModelResult) -> list[tuple[Gap, Gap]]:
    """The gaps of a model, each with that of the original in the same score."""
    original = comparison.original
    before = {} if original is None else {gap.name: gap for gap in list_gaps(comparison, original)}
    return [(gap, before[gap.name]) for gap in list_gaps(comparison, model) if gap.name in before]


def _average(gaps: Sequence[Gap]) -> float:
    return mean([abs(gap.points) for gap in gaps]) or 0.0
