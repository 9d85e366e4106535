"""Scores over several seeds: mean, spread, paired gap to the retrained reference, and its noise floor."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from expunge.core.errors import ConfigError
from expunge.evaluation.scores.disparity import TERMS

from .noise import distinct, noise_floors
from .score import DIRECTIONS, Interval, Score, Scores, aligned, number


@dataclasses.dataclass(frozen=True)
class Spread:
    """A mean with what it rests on.

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
    def of(cls, values: Sequence[float], level: float = 0.95) -> Spread:
        """The spread of at least one value."""
        from scipy.special import stdtrit

        mean, n = float(np.mean(values)), len(values)
        if n < 2:
            return cls(mean, None, n, None)
        std = float(np.std(values, ddof=1))
        half = float(stdtrit(n - 1, 0.5 + level / 2)) * std / math.sqrt(n)
        return cls(mean, std, n, Interval(mean - half, mean + half, level))

    def text(self, unit: str = "", *, signed: bool = False) -> str:
        """`mean +- std (n)`, or `mean (one seed)`."""
        mean = number(self.mean, unit, signed=signed)
        return f"{mean} (one seed)" if self.std is None else f"{mean} +- {number(self.std, unit)} (n={self.n})"


@dataclasses.dataclass(frozen=True)
class Summary:
    """One score over several seeds.

    Attributes:
        name, unit, direction: as in `Score`.
        value: spread of the score over the seeds.
        reference: spread of the retrained reference over its distinct models; None without a reference.
        gap: spread of value - reference, paired by seed; None unless every seed has a reference.
        values, gaps: the numbers by seed, in the order given.
        noise_floor: how far two retrained models are apart, see `noise_floors`; None with fewer than two references.
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

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def row(self) -> dict[str, str]:
        """The printed cells: score, mean +- std, reference, gap, noise floor, direction."""
        unit = f" {self.unit}" if self.unit else ""
        return {
            "score": self.name + unit,
            "mean +- std": self.value.text(self.unit),
            "reference": "-" if self.reference is None else self.reference.text(self.unit),
            "gap": "-" if self.gap is None else self.gap.text(self.unit, signed=True),
            "noise floor": number(self.noise_floor, self.unit),
            "direction": DIRECTIONS[self.direction],
        }


def _references(seeds: Sequence[Scores]) -> list[Scores]:
    """One of the seeds for each distinct reference model; seeds that share a reference count once."""
    known = [(scores.about.get("reference") or {}).get("weights") for scores in seeds]
    return distinct(seeds, [str(weights) if weights else None for weights in known])


def summarise(seeds: Sequence[Scores], *, level: float = 0.95) -> dict[str, Summary]:
    """Summaries by score name, over the scores that every seed has, in the order of the first.

    A gap is taken within each seed (its model minus its reference) and only then averaged, so a spread shared by both
    cancels. Several seeds on one reference give no noise floor.

    Args:
        seeds: the scores of one method, one `Scores` a seed.
        level: confidence level of the intervals.

    Raises:
        ConfigError: there are no scores, or a name means different things in two of them.
    """
    if not seeds:
        raise ConfigError("nothing to summarise", hint="give the scores of at least one seed")
    references = _references(seeds)
    floors = noise_floors([{s.name: s.reference for s in one if s.reference is not None} for one in references])
    summaries = {}
    for first in seeds[0]:
        if not all(first.name in scores for scores in seeds):
            continue
        scores = [s[first.name] for s in seeds]
        if {(s.unit, s.direction) for s in scores} != {(first.unit, first.direction)}:
            raise ConfigError("seeds disagree on unit or direction", where=f"score {first.name}")
        truths = [s[first.name].reference for s in references]
        summaries[first.name] = _summary(first, scores, truths, floors.get(first.name), level)
    return summaries


def _summary(
    first: Score, scores: Sequence[Score], truths: Sequence[float | None], floor: float | None, level: float
) -> Summary:
    gaps = tuple(score.gap for score in scores if score.gap is not None)
    known = [truth for truth in truths if truth is not None]
    reference = Spread.of(known, level) if known else None
    values = tuple(score.value for score in scores)
    return Summary(
        first.name,
        first.unit,
        first.direction,
        Spread.of(values, level),
        reference,
        Spread.of(gaps, level) if len(gaps) == len(scores) else None,
        values,
        gaps,
        floor,
    )


def disparity_of_means(summaries: Mapping[str, Summary]) -> float | None:
    """The disparity average as the paper's table prints it: from the means over seeds, not the mean over seeds.

    mean over {UA, MIA-Efficacy, RA, TA} of |mean value - mean reference|; never above the mean of the disparities.
    """
    gaps = [summaries[term].gap for term in TERMS if term in summaries]
    means = [abs(gap.mean) for gap in gaps if gap is not None]
    return float(np.mean(means)) if len(means) == len(TERMS) else None


def summary_text(summaries: Mapping[str, Summary]) -> str:
    """The summaries as an aligned plain-text table."""
    return aligned([summary.row() for summary in summaries.values()])
