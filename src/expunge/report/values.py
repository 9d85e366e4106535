"""Values in a report: a score of a model, and a histogram of confidences."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from expunge.core.errors import DataError, unknown_name_hint
from expunge.core.show import repr_fields
from expunge.evaluation.facts import score_facts
from expunge.evaluation.score import DIRECTIONS, Score


def as_finite(value: Any) -> float | None:
    """The value as a float, or None if it is absent, not a number, NaN or infinite."""
    if value is None or isinstance(value, (str, bool)):
        return None
    number = float(value)
    return number if math.isfinite(number) else None


@dataclasses.dataclass(frozen=True)
class ReportScore:
    """A score as the report shows it: a measured number, over one seed or several, or the reason why there is none.

    It is a view: `from_score` makes it from an `expunge.evaluation.Score`, `average_over_seeds` from those of several
    seeds.

    Attributes:
        name: name in the tables (`UA`, `MIA-Efficacy`, ...).
        value: the number, or None if it was not measured.
        unit: unit of the value, such as `%`, or empty.
        direction: `higher` or `lower` is better, or `reference`: closer to the retrained model is better.
        reference: value of the retrained model.
        gap: difference to the reference; used only if `reference` is None.
        interval: lower and upper end of the confidence interval.
        definition: how the score was computed.
        spread: sample standard deviation over seeds; None for one seed.
        noise_floor: mean absolute difference over pairs of the runs that `value` is the mean of; None if they are one
            model.
        seeds: number of seeds that `value` is the mean of.
        missing: why there is no value.

    Raises:
        DataError: the direction is unknown.
    """

    name: str
    value: float | None
    unit: str = ""
    direction: str = "reference"
    reference: float | None = None
    gap: float | None = None
    interval: tuple[float, float] | None = None
    definition: str = ""
    spread: float | None = None
    noise_floor: float | None = None
    seeds: int = 1
    missing: str = ""

    __repr__ = repr_fields

    def __post_init__(self) -> None:
        if self.direction not in DIRECTIONS:
            raise DataError(
                f"unknown direction {self.direction!r}",
                where=self.name,
                hint=unknown_name_hint(self.direction, DIRECTIONS),
            )
        if self.value is not None and as_finite(self.value) is None:
            object.__setattr__(self, "value", None)
            object.__setattr__(self, "missing", self.missing or "not a finite number")
        for field in ("reference", "gap", "spread", "noise_floor"):
            object.__setattr__(self, field, as_finite(getattr(self, field)))
        if self.interval is not None:
            ends = [as_finite(end) for end in self.interval]
            complete = len(ends) == 2 and None not in ends
            object.__setattr__(self, "interval", tuple(ends) if complete else None)

    @property
    def signed_gap(self) -> float | None:
        """value - reference, in the score's unit; `gap` if there is no reference value."""
        if self.value is None:
            return None
        return self.gap if self.reference is None else self.value - self.reference

    @classmethod
    def from_score(cls, score: Score) -> ReportScore:
        """The view of a score of one seed."""
        interval = None if score.interval is None else (score.interval.low, score.interval.high)
        return cls(
            score.name, score.value, score.unit, score.direction, score.reference, score.gap, interval, score.definition
        )

    @classmethod
    def not_measured(cls, name: str, reason: str) -> ReportScore:
        """The view of a score that was not measured.

        Args:
            name: its name.
            reason: why not, in a few words.
        """
        facts = score_facts(name)
        return cls(name, None, facts.unit, facts.direction, definition=facts.text, missing=f"not measured: {reason}")

    @classmethod
    def from_json(cls, body: Mapping[str, Any], name: str | None = None) -> ReportScore:
        """Read a score from a dictionary with these keys; other keys are ignored.

        Args:
            body: the dictionary; `interval` is a pair of numbers or `{"low", "high"}`.
            name: name of the score, if the dictionary has none.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        values = {key: value for key, value in body.items() if key in known and value is not None}
        interval = values.get("interval")
        if interval is not None:
            values["interval"] = (
                (interval["low"], interval["high"]) if isinstance(interval, Mapping) else tuple(interval)
            )
        return cls(**{"name": name or "", "value": None, **values})


@dataclasses.dataclass(frozen=True)
class Histogram:
    """Counts of records by confidence.

    Attributes:
        edges: `B + 1` ascending bin edges.
        counts: `B` counts of records.

    Raises:
        DataError: the edges do not fit the counts or do not ascend, or a count is negative.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]

    __repr__ = repr_fields

    def __post_init__(self) -> None:
        if len(self.edges) != len(self.counts) + 1 or any(np.diff(self.edges) <= 0):
            raise DataError(f"{len(self.counts)} counts need {len(self.counts) + 1} ascending edges", where="histogram")
        if any(count < 0 for count in self.counts):
            raise DataError("a count of records is negative", where="histogram")

    @classmethod
    def from_values(cls, values: Iterable[float], bins: int = 20) -> Histogram:
        """Histogram of confidences in [0, 1] with equal bins; the last bin includes 1.

        Raises:
            DataError: a value is not in [0, 1].
        """
        array = np.asarray(list(values), dtype=np.float64)
        if not ((array >= 0) & (array <= 1)).all():
            raise DataError("confidences have to be numbers between 0 and 1", where="histogram")
        counts, edges = np.histogram(array, bins=bins, range=(0.0, 1.0))
        return cls(tuple(map(float, edges)), tuple(map(int, counts)))

    @property
    def total(self) -> int:
        """Number of records."""
        return sum(self.counts)

    @property
    def fractions(self) -> tuple[float, ...]:
        """Fraction of the records in each bin; zeros for an empty histogram."""
        return tuple(count / max(1, self.total) for count in self.counts)
