"""What a report says, as plain data: no tensors, no models, nothing that needs torch.

A report holds scenarios (one request each); a scenario holds comparisons (one original model each, dense or sparse); a
comparison holds the models set side by side: the original, the unlearned ones and the retrained reference.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from expunge.core.errors import DataError

ROLES = ("original", "retrained", "unlearned")
DIRECTIONS = ("higher", "lower", "reference")
#: The parts of the split whose confidence is drawn, in order.
PARTS = ("forget", "retain", "unseen")


def finite(value: Any) -> float | None:
    """The number as a float, or None where there is none (absent, NaN or infinite)."""
    if value is None or isinstance(value, (str, bool)):
        return None
    number = float(value)
    return number if math.isfinite(number) else None


@dataclasses.dataclass(frozen=True)
class Score:
    """One measured number.

    Attributes:
        name: as in the tables (`UA`, `MIA-Efficacy`, ...).
        value: the number, or None where it could not be measured.
        unit: `%`, or empty.
        direction: `higher` or `lower` is better, or `reference`: nearer to the retrained model is better.
        reference: the retrained model's value.
        gap: distance to the reference, used only where `reference` is None.
        interval: lower and upper end of the confidence interval.
        definition: one sentence that says what was measured.
        spread: sample standard deviation over seeds, None for one seed.
        noise_floor: mean difference between two of the runs behind `value`, None where they are one model.
        seeds: number of seeds behind `value`.
        missing: why there is no value.
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
            raise DataError(f"direction is one of {', '.join(DIRECTIONS)}, not {self.direction!r}", where=self.name)
        if self.value is not None and finite(self.value) is None:
            object.__setattr__(self, "value", None)
            object.__setattr__(self, "missing", self.missing or "not a finite number")
        for field in ("reference", "gap", "spread", "noise_floor"):
            object.__setattr__(self, field, finite(getattr(self, field)))
        if self.interval is not None:
            ends = [finite(end) for end in self.interval]
            whole = len(ends) == 2 and None not in ends
            object.__setattr__(self, "interval", tuple(ends) if whole else None)

    @property
    def signed_gap(self) -> float | None:
        """value - reference, in the score's unit; the given `gap` where no reference value is known."""
        if self.value is None:
            return None
        return self.gap if self.reference is None else self.value - self.reference

    @classmethod
    def from_json(cls, body: Mapping[str, Any], name: str | None = None) -> Score:
        """A score from a dictionary with these keys; other keys are left out.

        An interval is a pair of numbers or `{"low", "high"}`.
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
    """Counts of values between edges (`len(edges) == len(counts) + 1`, edges ascending)."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.edges) != len(self.counts) + 1 or any(np.diff(self.edges) <= 0):
            raise DataError(f"{len(self.counts)} counts want {len(self.counts) + 1} ascending edges")
        if any(count < 0 for count in self.counts):
            raise DataError("a histogram counts records: no count is negative")

    @classmethod
    def of(cls, values: Iterable[float], bins: int = 20) -> Histogram:
        """Histogram of confidences in [0, 1] with equal bins; the last bin includes 1."""
        array = np.asarray(list(values), dtype=np.float64)
        if not ((array >= 0) & (array <= 1)).all():
            raise DataError("confidences are numbers between 0 and 1")
        counts, edges = np.histogram(array, bins=bins, range=(0.0, 1.0))
        return cls(tuple(map(float, edges)), tuple(map(int, counts)))

    @property
    def total(self) -> int:
        """Number of records."""
        return sum(self.counts)

    @property
    def shares(self) -> tuple[float, ...]:
        """Share of the records in each bin; zeros for an empty histogram."""
        return tuple(count / max(1, self.total) for count in self.counts)


@dataclasses.dataclass(frozen=True)
class Request:
    """What was to be forgotten.

    Attributes:
        records: size of the forget set.
        selection: how the records were chosen, e.g. `{"by": "random", "fraction": 0.05, "seed": 0}`.
        hash: hash of the record ids.
        first_ids: the first record ids.
        forgotten_class: index of the class if the forget set is a whole class.
        retained: size of the retain set, None where unknown.
    """

    records: int
    selection: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    hash: str = ""
    first_ids: tuple[str, ...] = ()
    forgotten_class: int | None = None
    retained: int | None = None

    @classmethod
    def from_json(cls, body: Mapping[str, Any], *, retained: int | None = None, ids: int = 12) -> Request:
        """The `request` of an `outcome.json` body; its first `ids` record ids are kept."""
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
class State:
    """Influence-bearing state: what a method rewrote, dropped, or left as training on all records had made it."""

    rewrote: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    still_remembers: tuple[str, ...] = ()
    meaning: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> State:
        """The `state` of an `outcome.json` body."""
        lists = {key: tuple(body.get(key, ())) for key in ("rewrote", "dropped", "still_remembers")}
        return cls(**lists, meaning=dict(body.get("meaning", {})))


@dataclasses.dataclass(frozen=True)
class ModelResult:
    """One model of a comparison.

    Attributes:
        label: what the table calls it (`Original`, `Retrain`, `FT`, ...).
        role: `original`, `retrained` (the reference) or `unlearned`.
        scores: by name.
        guarantee: `exact`, `certified`, `conditional`, `behavioural`, `empirical`, or empty.
        passes, seconds: what the method cost.
        class_accuracy: accuracy in per cent for each class, None where a class has no records.
        confidence: histogram of the probability of the true label, by part (`forget`, `retain`, `unseen`).
        density: density in [0, 1] of each masked tensor, by name; empty for a dense model.
        state: what was rewritten and what still remembers; None for the original.
        options, seeds, hashes, history, facts: provenance, shown as it is.
        notes: cautions and reasons for what was not measured, shown under the table.
    """

    label: str
    role: str
    scores: Mapping[str, Score] = dataclasses.field(default_factory=dict)
    guarantee: str = ""
    passes: float | None = None
    seconds: float | None = None
    class_accuracy: tuple[float | None, ...] = ()
    confidence: Mapping[str, Histogram] = dataclasses.field(default_factory=dict)
    density: Mapping[str, float] = dataclasses.field(default_factory=dict)
    state: State | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seeds: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    hashes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    history: tuple[str, ...] = ()
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise DataError(f"role is one of {', '.join(ROLES)}, not {self.role!r}", where=self.label)
        object.__setattr__(self, "class_accuracy", tuple(finite(value) for value in self.class_accuracy))
        for field in ("passes", "seconds"):
            object.__setattr__(self, field, finite(getattr(self, field)))

    @classmethod
    def from_outcome(cls, body: Mapping[str, Any], *, role: str = "unlearned", label: str | None = None) -> ModelResult:
        """A model from the body of an `outcome.json`: method, cost, state and provenance. Measured facts (scores,
        accuracies, histograms, density) come by `dataclasses.replace`."""
        method, cost = body.get("method", {}), body.get("cost", {})
        provenance = body.get("provenance", {})
        return cls(
            label=label or str(method.get("name", "unnamed method")),
            role=role,
            guarantee=str(method.get("guarantee", "")),
            passes=cost.get("passes"),
            seconds=cost.get("seconds"),
            state=State.from_json(body.get("state", {})),
            options=dict(method.get("options", {})),
            seeds=dict(body.get("seeds", {})),
            hashes=dict(body.get("hashes", {})),
            history=tuple(map(str, provenance.get("history", ()))),
            facts={key: provenance[key] for key in ("architecture", "data", "recipe") if provenance.get(key)},
        )


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Models that answer the same request from the same original: the original, the unlearned ones, the reference.

    Attributes:
        label: `dense`, `90 % sparse`, ...
        models: in the order of the tables; at most one original and at most one retrained.
        floor: noise floors by score, beside those of the reference's scores (that of the disparity average).
    """

    label: str
    models: tuple[ModelResult, ...]
    floor: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for role in ("original", "retrained"):
            if sum(model.role == role for model in self.models) > 1:
                raise DataError(f"a comparison has one {role} model", where=self.label)

    def _first(self, role: str) -> ModelResult | None:
        return next((model for model in self.models if model.role == role), None)

    @property
    def original(self) -> ModelResult | None:
        return self._first("original")

    @property
    def reference(self) -> ModelResult | None:
        """The retrained model."""
        return self._first("retrained")

    @property
    def unlearned(self) -> tuple[ModelResult, ...]:
        return tuple(model for model in self.models if model.role == "unlearned")

    def noise(self) -> dict[str, float]:
        """Noise floor by score: what `floor` gives, else that of the reference's score; empty for one seed."""
        scores = {} if self.reference is None else self.reference.scores
        floors = {name: score.noise_floor for name, score in scores.items() if score.noise_floor is not None}
        return {**floors, **self.floor}


@dataclasses.dataclass(frozen=True)
class Scenario:
    """One request and every comparison that answers it.

    Attributes:
        title: a few words (`5 % random records`).
        class_names: names of the classes of `ModelResult.class_accuracy`.
        accuracy_on: the records that the per-class accuracies are measured on.
    """

    title: str
    request: Request
    comparisons: tuple[Comparison, ...]
    class_names: tuple[str, ...] = ()
    accuracy_on: str = "test records"

    def __post_init__(self) -> None:
        if not self.comparisons:
            raise DataError("a scenario has at least one comparison", where=self.title)
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
    """A whole report.

    Attributes:
        title: heading of the page.
        scenarios: at least one.
        data, architecture: names, for the summary (`digits`, `small-cnn`).
        summary: one sentence; made from the content where empty.
        limits: further lines for "What this does not show".
        provenance: facts about the run as a whole, shown as they are (nested mappings allowed).
        versions: versions of what decides the numbers.
        created: a date as text, or empty; never filled in, so that the same content gives the same bytes.
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
            raise DataError("a report has at least one scenario", where=self.title)
