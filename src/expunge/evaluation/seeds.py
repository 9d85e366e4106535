"""Statistics over seeds: means, standard deviations, t intervals, paired gaps and noise floors. Does not import torch.

Summaries, claims, tables, figures and reports take their numbers from here.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from expunge.core.errors import ConfigError
from expunge.core.show import repr_fields

from .facts import DIRECTIONS, built_in_facts, score_facts
from .score import Interval, Score, Scores, format_number, format_table

T = TypeVar("T")

#: Confidence level of intervals over seeds.
LEVEL = 0.95


def mean(values: Sequence[float]) -> float | None:
    """Arithmetic mean; None without values."""
    return math.fsum(values) / len(values) if values else None


def spread(values: Sequence[float]) -> float | None:
    """Sample standard deviation (divisor n - 1); None with fewer than two values."""
    if len(values) < 2:
        return None
    centre = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1))


def t_interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float] | None:
    """Student's two-sided t interval of the mean: mean -+ t((1 + level) / 2, n - 1) spread / sqrt(n); None for n < 2.

    Args:
        values: one value a seed.
        level: confidence level, in (0, 1).
    """
    centre, std = mean(values), spread(values)
    if centre is None or std is None:
        return None
    from scipy.special import stdtrit

    half = float(stdtrit(len(values) - 1, (1 + level) / 2)) * std / math.sqrt(len(values))
    return centre - half, centre + half


def average_gap(values: Mapping[str, float], reference: Mapping[str, float], terms: Sequence[str]) -> float:
    """The mean over `terms` of |value - reference|; `terms` are names of scores, which both mappings have."""
    return float(np.mean([abs(values[term] - reference[term]) for term in terms]))


def average_of_gaps(gaps: Mapping[str, float | None], terms: Sequence[str]) -> float | None:
    """The mean of the absolute gaps of `terms`; None if one of them is missing."""
    found = [abs(gap) for term in terms if (gap := gaps.get(term)) is not None]
    return mean(found) if len(found) == len(terms) else None


def drop_duplicates(runs: Sequence[T], models: Sequence[str | None]) -> list[T]:
    """Keep the first run of each model, in order.

    Args:
        runs: one item a run.
        models: hash of the weights of each run; None counts as a distinct model.
    """
    seen: set[str] = set()
    found = []
    for run, model in zip(runs, models, strict=True):
        if model is None or model not in seen:
            found.append(run)
        if model is not None:
            seen.add(model)
    return found


def mean_pairwise_distance(values: Sequence[T], distance: Callable[[T, T], float]) -> float | None:
    """The mean of `distance` over all pairs of values, or None for fewer than two values."""
    pairs = [distance(a, b) for a, b in itertools.combinations(values, 2)]
    return math.fsum(pairs) / len(pairs) if pairs else None


def noise_floors(
    references: Sequence[Mapping[str, float]], models: Sequence[str | None] | None = None
) -> dict[str, float]:
    """The noise floor of each score: the mean of |a - b| over all pairs of retrained references.

    The floor is a rough scale for gaps: both are differences of two runs, but the two runs of a gap share a seed, and
    those of the floor do not. (For normally distributed values the floor is 2 / sqrt(pi) = 1.128 standard deviations of
    one run, and 42 % of differences exceed it.) The floor of an average of gaps, such as the disparity average, is the
    mean of that average between two references, over the pairs in which both have all its scores. A distance to the
    reference (`rerun_floor` of its facts) has no floor here, because the reference's own is 0.

    Args:
        references: values by score name, one mapping a run; the runs differ only in their seed.
        models: hash of the weights of each run; runs with equal hashes are one model and count once. None: every run is
            a distinct model.

    Returns:
        Floors by score name, in the unit of the score. A score is absent if fewer than two models have it; the
        disparity average is absent if fewer than two models have all four scores.

    Examples:
        >>> from expunge.evaluation import noise_floors
        >>> noise_floors([{"UA": 10.0}, {"UA": 13.0}, {"UA": 11.0}])
        {'UA': 2.0}
    """
    runs = drop_duplicates(references, models or [None] * len(references))
    names = dict.fromkeys(name for run in runs for name in run)
    averages = {name: terms for name in (*built_in_facts(), *names) if (terms := score_facts(name).averages)}
    floors = {}
    for name in names:
        if score_facts(name).rerun_floor:
            continue
        floor = mean_pairwise_distance([run[name] for run in runs if name in run], lambda a, b: abs(a - b))
        if floor is not None and name not in averages:
            floors[name] = floor
    for name, terms in averages.items():
        complete = [run for run in runs if all(term in run for term in terms)]
        floor = mean_pairwise_distance(complete, functools.partial(average_gap, terms=terms))
        if floor is not None:
            floors[name] = floor
    return floors


@dataclasses.dataclass(frozen=True)
class Spread:
    """A mean over seeds with its standard deviation and interval.

    Attributes:
        mean: mean over the seeds.
        std: sample standard deviation (divisor n - 1); None for one seed.
        n: number of seeds.
        interval: Student's t interval of the mean, mean -+ t(n - 1) std / sqrt(n); None for one seed.
    """

    mean: float
    std: float | None
    n: int
    interval: Interval | None

    @classmethod
    def from_values(cls, values: Sequence[float], level: float = 0.95) -> Spread:
        """Mean, standard deviation and interval of at least one value.

        Args:
            values: one value a seed.
            level: confidence level of the interval, in (0, 1).
        """
        centre, ends = mean(values), t_interval(values, level)
        if centre is None:
            raise ConfigError("there is no mean of no values", where="statistics over seeds")
        return cls(centre, spread(values), len(values), None if ends is None else Interval(*ends, level))

    def text(self, unit: str = "", *, signed: bool = False) -> str:
        """`mean +- std (n=...)`, or `mean (one seed)`; `unit` decides the decimals."""
        mean = format_number(self.mean, unit, signed=signed)
        return f"{mean} (one seed)" if self.std is None else f"{mean} +- {format_number(self.std, unit)} (n={self.n})"


@dataclasses.dataclass(frozen=True)
class SeedSummary:
    """One score over several seeds.

    Attributes:
        name, unit, direction: as in `Score`.
        value: spread of the score over the seeds.
        reference: spread of the retrained reference over its distinct models; None without a reference.
        gap: spread of value - reference, paired by seed; None unless every seed has a reference.
        values, gaps: the numbers by seed, in the order given.
        noise_floor: mean absolute difference between two retrained models, see `noise_floors`; None with fewer than
            two references.
    """

    name: str
    unit: str
    direction: str
    value: Spread
    reference: Spread | None
    gap: Spread | None
    values: tuple[float, ...]
    gaps: tuple[float, ...]
    noise_floor: float | None

    __repr__ = repr_fields

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return dataclasses.asdict(self)

    def row(self) -> dict[str, str]:
        """The formatted cells: score, mean +- std, reference, gap, noise floor, direction."""
        unit = f" {self.unit}" if self.unit else ""
        return {
            "score": self.name + unit,
            "mean +- std": self.value.text(self.unit),
            "reference": "-" if self.reference is None else self.reference.text(self.unit),
            "gap": "-" if self.gap is None else self.gap.text(self.unit, signed=True),
            "noise floor": format_number(self.noise_floor, self.unit),
            "direction": DIRECTIONS[self.direction],
        }


def _drop_repeated_references(seeds: Sequence[Scores]) -> list[Scores]:
    """The first seed of each distinct reference model, so that a reference used by several seeds counts once."""
    known = [(scores.about.get("reference") or {}).get("weights") for scores in seeds]
    return drop_duplicates(seeds, [str(weights) if weights else None for weights in known])


def summarise(seeds: Sequence[Scores], *, level: float = 0.95) -> dict[str, SeedSummary]:
    """Summarise each score over several seeds.

    The gap is computed within each seed (value of the model minus value of its reference) and then averaged:
    gap = mean_i (v_i - r_i), with the interval mean -+ t(n - 1) std / sqrt(n). Variation that a model and its reference
    share cancels. If all seeds have the same reference, there is no noise floor.

    Args:
        seeds: the scores of one method, one `Scores` a seed.
        level: confidence level of the intervals, in (0, 1).

    Returns:
        A summary for each score that every seed has, by name, in the order of the first seed.

    Raises:
        ConfigError: there are no scores, or two seeds give one score different units or directions.

    Examples:
        >>> from expunge.evaluation import Score, Scores, summarise
        >>> def scores_of_seed(value, reference, weights):
        ...     score = Score("UA", value, "%", "reference", "100 - accuracy on D_f", reference=reference)
        ...     return Scores((score,), about={"reference": {"weights": weights}})
        >>> summary = summarise([scores_of_seed(6.0, 5.0, "a"), scores_of_seed(9.0, 7.0, "b")])["UA"]
        >>> summary.value.mean, summary.gap.mean, summary.noise_floor
        (7.5, 1.5, 2.0)
    """
    if not seeds:
        raise ConfigError("nothing to summarise", hint="give the scores of at least one seed")
    references = _drop_repeated_references(seeds)
    floors = noise_floors([{s.name: s.reference for s in one if s.reference is not None} for one in references])
    summaries = {}
    for first in seeds[0]:
        if not all(first.name in scores for scores in seeds):
            continue
        scores = [s[first.name] for s in seeds]
        if {(s.unit, s.direction) for s in scores} != {(first.unit, first.direction)}:
            raise ConfigError("seeds disagree on unit or direction", where=f"score {first.name}")
        reference_values = [s[first.name].reference for s in references]
        summaries[first.name] = _summarise_score(first, scores, reference_values, floors.get(first.name), level)
    return summaries


def _summarise_score(
    first: Score, scores: Sequence[Score], reference_values: Sequence[float | None], floor: float | None, level: float
) -> SeedSummary:
    gaps = tuple(score.gap for score in scores if score.gap is not None)
    known = [value for value in reference_values if value is not None]
    reference = Spread.from_values(known, level) if known else None
    values = tuple(score.value for score in scores)
    return SeedSummary(
        first.name,
        first.unit,
        first.direction,
        Spread.from_values(values, level),
        reference,
        Spread.from_values(gaps, level) if len(gaps) == len(scores) else None,
        values,
        gaps,
        floor,
    )


def disparity_of_means(summaries: Mapping[str, SeedSummary]) -> float | None:
    """The disparity average computed from the means over seeds, as in table 1 of [Jia2023].

    mean over s in {UA, MIA-Efficacy, RA, TA} of |mean_i v_i(s) - mean_i r_i(s)|, in percentage points, with i the seed.
    It is never above the mean over seeds of the disparity averages, because gaps of opposite sign cancel.

    Args:
        summaries: by score name, from `summarise`.

    Returns:
        The average, or None where one of the four scores or its gap is missing.

    Examples:
        >>> from expunge.evaluation import Score, Scores, disparity_of_means, summarise
        >>> def scores_of_seed(gap):
        ...     names = ("UA", "MIA-Efficacy", "RA", "TA")
        ...     return Scores(tuple(Score(n, 50.0 + gap, "%", "reference", "", reference=50.0) for n in names))
        >>> disparity_of_means(summarise([scores_of_seed(-2.0), scores_of_seed(6.0)]))
        2.0
    """
    gaps = {name: None if summary.gap is None else summary.gap.mean for name, summary in summaries.items()}
    return average_of_gaps(gaps, score_facts("Disparity average").averages)


def format_summaries(summaries: Mapping[str, SeedSummary]) -> str:
    """Format summaries as an aligned plain-text table, one row a score.

    Args:
        summaries: by score name, from `summarise`.

    Examples:
        >>> from expunge.evaluation import Score, Scores, format_summaries, summarise
        >>> seeds = [Scores((Score("RA", value, "%", "reference", "accuracy on D_r"),)) for value in (98.0, 99.0)]
        >>> for line in format_summaries(summarise(seeds)).splitlines():
        ...     print(line[:26])
        score          mean +- std
        RA %   98.50 +- 0.71 (n=2)
    """
    return format_table([summary.row() for summary in summaries.values()])
