"""The content of a report as plain data, without tensors, models or torch.

A report contains scenarios (one request each). A scenario contains comparisons (one original model each, dense or
sparse). A comparison contains models: the original, the unlearned ones and the retrained reference.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from expunge.core.errors import DataError, unknown_name_hint
from expunge.evaluation.score import DIRECTIONS

ROLES = ("original", "retrained", "unlearned")


def as_finite(value: Any) -> float | None:
    """The value as a float, or None if it is absent, not a number, NaN or infinite."""
    if value is None or isinstance(value, (str, bool)):
        return None
    number = float(value)
    return number if math.isfinite(number) else None


@dataclasses.dataclass(frozen=True)
class ReportScore:
    """One score of a model in the report: a measured number or the reason why there is none.

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
        noise_floor: mean difference between two of the runs that `value` is the mean of; None if they are one model.
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
        counts: `B` counts, none negative (`DataError` otherwise).
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]

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


@dataclasses.dataclass(frozen=True)
class RequestSummary:
    """A forget request as the report shows it.

    Attributes:
        records: size of the forget set.
        selection: how the records were selected, e.g. `{"kind": "random", "fraction": 0.05, "seed": 0}`.
        hash: hash of the record ids.
        first_ids: the first record ids.
        forgotten_class: index of the class if the forget set is a whole class.
        retained: size of the retain set; None if unknown.
    """

    records: int
    selection: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    hash: str = ""
    first_ids: tuple[str, ...] = ()
    forgotten_class: int | None = None
    retained: int | None = None

    @classmethod
    def from_json(cls, body: Mapping[str, Any], *, retained: int | None = None, ids: int = 12) -> RequestSummary:
        """Read the `request` of an `outcome.json` body.

        Args:
            body: the request.
            retained: size of the retain set.
            ids: number of record ids that the report shows.
        """
        listed = tuple(map(str, body.get("record_ids", ())))
        return cls(
            records=int(body.get("records", len(listed))),
            selection=dict(body.get("selection", {})),
            hash=str(body.get("hash", "")),
            first_ids=listed[:ids],
            forgotten_class=body.get("forgotten_class"),
            retained=retained,
        )


@dataclasses.dataclass(frozen=True)
class InfluenceState:
    """State of a model that depends on its training records, and what a method did with it.

    Attributes:
        rewrote: kinds of state that the method recomputed from D_r or changed by training.
        dropped: kinds of state that the unlearned model no longer has.
        still_remembers: kinds of state that still depend on the forgotten records.
        meaning: description of each kind.
    """

    rewrote: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    still_remembers: tuple[str, ...] = ()
    meaning: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> InfluenceState:
        """Read the `state` of an `outcome.json` body."""
        lists = {key: tuple(body.get(key, ())) for key in ("rewrote", "dropped", "still_remembers")}
        return cls(**lists, meaning=dict(body.get("meaning", {})))


@dataclasses.dataclass(frozen=True)
class ModelResult:
    """One model of a comparison.

    Attributes:
        label: name in the tables (`Original`, `Retrain`, `FT`, ...).
        role: `original`, `retrained` (the reference) or `unlearned`.
        scores: scores by name.
        guarantee: `exact`, `certified`, `conditional`, `behavioural`, `empirical`, or empty.
        passes, seconds: cost of the method.
        class_accuracy: accuracy in % on each class, None for a class without records.
        confidence: histogram of the probability of the true label, by part (`forget`, `retain`, and `unseen`, the
            non-member pool).
        density: density in [0, 1] of each masked tensor, by name; empty for a dense model.
        state: what the method did with state that depends on training records; None for the original.
        options, seeds, hashes, history, facts: provenance, shown unchanged.
        notes: cautions, and reasons for missing measurements; shown under the table.

    Raises:
        DataError: the role is unknown.
    """

    label: str
    role: str
    scores: Mapping[str, ReportScore] = dataclasses.field(default_factory=dict)
    guarantee: str = ""
    passes: float | None = None
    seconds: float | None = None
    class_accuracy: tuple[float | None, ...] = ()
    confidence: Mapping[str, Histogram] = dataclasses.field(default_factory=dict)
    density: Mapping[str, float] = dataclasses.field(default_factory=dict)
    state: InfluenceState | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seeds: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    hashes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    history: tuple[str, ...] = ()
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise DataError(f"unknown role {self.role!r}", where=self.label, hint=unknown_name_hint(self.role, ROLES))
        object.__setattr__(self, "class_accuracy", tuple(as_finite(value) for value in self.class_accuracy))
        for field in ("passes", "seconds"):
            object.__setattr__(self, field, as_finite(getattr(self, field)))

    @classmethod
    def from_outcome(cls, body: Mapping[str, Any], *, role: str = "unlearned", label: str | None = None) -> ModelResult:
        """Read method, cost, state and provenance of a model from the body of an `outcome.json`.

        Add what was measured (scores, class accuracies, histograms, density) with `dataclasses.replace`.

        Args:
            body: the body of `outcome.json`.
            role: `retrained` for the reference.
            label: name in the tables; None: the name of the method.
        """
        method, cost = body.get("method", {}), body.get("cost", {})
        provenance = body.get("provenance", {})
        return cls(
            label=label or str(method.get("name", "unnamed method")),
            role=role,
            guarantee=str(method.get("guarantee", "")),
            passes=cost.get("passes"),
            seconds=cost.get("seconds"),
            state=InfluenceState.from_json(body.get("state", {})),
            options=dict(method.get("options", {})),
            seeds=dict(body.get("seeds", {})),
            hashes=dict(body.get("hashes", {})),
            history=tuple(map(str, provenance.get("history", ()))),
            facts={key: provenance[key] for key in ("architecture", "data", "recipe") if provenance.get(key)},
        )


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Models of one request and one original: the original, the unlearned models, and the retrained reference.

    Attributes:
        label: `dense`, `90 % sparse`, ...
        models: in the order of the tables; at most one original and at most one retrained.
        floors: noise floors by score name, in addition to those of the reference's scores (such as the floor of the
            disparity average).

    Raises:
        DataError: there are two original or two retrained models.
    """

    label: str
    models: tuple[ModelResult, ...]
    floors: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for role in ("original", "retrained"):
            if sum(model.role == role for model in self.models) > 1:
                raise DataError(f"there is more than one {role} model; a comparison has one", where=self.label)

    def _find_role(self, role: str) -> ModelResult | None:
        return next((model for model in self.models if model.role == role), None)

    @property
    def original(self) -> ModelResult | None:
        return self._find_role("original")

    @property
    def reference(self) -> ModelResult | None:
        """The retrained model."""
        return self._find_role("retrained")

    @property
    def unlearned(self) -> tuple[ModelResult, ...]:
        return tuple(model for model in self.models if model.role == "unlearned")

    def noise_floors(self) -> dict[str, float]:
        """Noise floor by score name: that of `floors`, else that of the reference's score; empty for one seed."""
        scores = {} if self.reference is None else self.reference.scores
        floors = {name: score.noise_floor for name, score in scores.items() if score.noise_floor is not None}
        return {**floors, **self.floors}


@dataclasses.dataclass(frozen=True)
class Scenario:
    """One request and its comparisons.

    Attributes:
        title: short description (`5 % random records`).
        request: the forget request.
        comparisons: at least one.
        class_names: names of the classes of `ModelResult.class_accuracy`.
        accuracy_on: the records that the class accuracies are measured on.

    Raises:
        DataError: there is no comparison, or a model has a different number of class accuracies than class names.
    """

    title: str
    request: RequestSummary
    comparisons: tuple[Comparison, ...]
    class_names: tuple[str, ...] = ()
    accuracy_on: str = "test records"

    def __post_init__(self) -> None:
        if not self.comparisons:
            raise DataError("a scenario needs at least one comparison", where=self.title)
        for model in self.models():
            if model.class_accuracy and len(model.class_accuracy) != len(self.class_names):
                raise DataError(
                    f"{len(model.class_accuracy)} class accuracies for {len(self.class_names)} class names",
                    where=f"{self.title}: {model.label}",
                )

    def models(self) -> list[ModelResult]:
        """The models of all comparisons, in order."""
        return [model for comparison in self.comparisons for model in comparison.models]


@dataclasses.dataclass(frozen=True)
class ReportContent:
    """The content of a report.

    Attributes:
        title: heading of the page.
        scenarios: at least one.
        data: name of the data source, for the summary (`digits`).
        architecture: name of the architecture, for the summary (`small-cnn`).
        summary: one sentence; generated from the content if empty.
        limits: further lines for "What this does not show".
        provenance: facts about the run, shown unchanged (nested mappings allowed).
        versions: versions of the libraries that affect the numbers.
        created: a date as a string, or empty; never filled in, so that the same content gives the same bytes.

    Raises:
        DataError: there is no scenario.
    """

    title: str
    scenarios: tuple[Scenario, ...]
    data: str = ""
    architecture: str = ""
    summary: str = ""
    limits: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    created: str = ""

    def __post_init__(self) -> None:
        if not self.scenarios:
            raise DataError("a report needs at least one scenario", where=self.title)
