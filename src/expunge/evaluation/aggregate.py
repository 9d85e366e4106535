"""Scores over several seeds: mean, standard deviation, paired gap to the retrained reference, and noise floor."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from expunge.core.errors import ConfigError
from expunge.core.show import repr_fields
from expunge.evaluation.scores.disparity import TERMS

from .noise import drop_duplicates, noise_floors
from .score import DIRECTIONS, Interval, Score, Scores, format_number, format_table


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
        from scipy.special import stdtrit

        mean, n = float(np.mean(values)), len(values)
        if n < 2:
            return cls(mean, None, n, None)
        std = float(np.std(values, ddof=1))
        half = float(stdtrit(n - 1, 0.5 + level / 2)) * std / math.sqrt(n)
        return cls(mean, std, n, Interval(mean - half, mean + half, level))

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
    gaps = [summaries[term].gap for term in TERMS if term in summaries]
    means = [abs(gap.mean) for gap in gaps if gap is not None]
    return float(np.mean(means)) if len(means) == len(TERMS) else None


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
