"""The content of a report as plain data, without tensors, models or torch.

A report contains scenarios (one request each). A scenario contains comparisons (one original model each, dense or
sparse). A comparison contains models: the original, the unlearned ones and the retrained reference.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from expunge.core.errors import DataError, unknown_name_hint
from expunge.core.outcome import Extent, MaskChange, describe_guarantee, list_changed
from expunge.core.show import repr_fields
from expunge.data.quality import Copies

from .values import Histogram, ReportScore, as_finite

ROLES = ("original", "retrained", "unlearned")
#: What stands in place of a name or value that is left out.
LEFT_OUT = "left out"


def leave_out_names(selection: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what may identify a person from a selection, or from the section `forget` of a configuration.

    Lists (of ids, of subjects) and new labels by id become their lengths, also inside mappings (of skipped names, by
    reason), and the value of a column becomes `left out`. Rules, numbers, files, and names of classes and columns
    remain.

    Example:
        >>> leave_out_names({"by": "subjects", "subjects": ["Ann", "Bob"], "skipped": {"unknown": ["Eve"]}})
        {'by': 'subjects', 'subjects': 2, 'skipped': {'unknown': 1}}
    """
    found: dict[str, Any] = {}
    for key, value in selection.items():
        if key in ("columns", "blank"):
            found[key] = value
        elif isinstance(value, Mapping):
            found[key] = len(value) if key == "labels" else leave_out_names(value)
        elif isinstance(value, (list, tuple)):
            found[key] = len(value)
        elif key == "value" and value is not None and not isinstance(value, bool):
            found[key] = LEFT_OUT
        else:
            found[key] = value
    return found


@dataclasses.dataclass(frozen=True)
class ReportWarning:
    """A reason why numbers of this page mislead: in the red banner at its top.

    Attributes:
        message: what is wrong, in one sentence.
        explanation: what follows from it.
        code: a short name of its kind (`reference-collapsed`); warnings of one kind are shown together.
    """

    message: str
    explanation: str = ""
    code: str = ""

    __repr__ = repr_fields

    @classmethod
    def from_json(cls, body: object) -> ReportWarning:
        """Read a warning: a string, or a mapping with `message`, and optionally `hint` or `explanation`, and `code`."""
        if not isinstance(body, Mapping):
            return cls(str(body))
        explanation = body.get("explanation") or body.get("hint") or ""
        return cls(str(body.get("message", "")), str(explanation), str(body.get("code", "")))


@dataclasses.dataclass(frozen=True)
class RequestSummary:
    """A forget request as the report shows it.

    Attributes:
        records: size of the forget set.
        selection: how the records were selected, e.g. `{"by": "random", "fraction": 0.05, "seed": 0}`.
        hash: hash of the record ids.
        first_ids: record ids to print; empty by default, because ids are personal data.
        forgotten_class: index of the class if the forget set is a whole class.
        retained: size of the retain set; None if unknown.
    """

    records: int
    selection: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    hash: str = ""
    first_ids: tuple[str, ...] = ()
    forgotten_class: int | None = None
    retained: int | None = None

    __repr__ = repr_fields

    @classmethod
    def from_json(cls, body: Mapping[str, Any], *, retained: int | None = None, ids: int | None = 0) -> RequestSummary:
        """Read the `request` of an `outcome.json` body.

        Args:
            body: the request.
            retained: size of the retain set.
            ids: number of record ids that the report shows; None: all. With 0, names of subjects, names that were
                skipped, and values of columns are left out too (`leave_out_names`).
        """
        listed = tuple(map(str, body.get("record_ids", ())))
        selection = dict(body.get("selection", {}))
        return cls(
            records=int(body.get("records", len(listed))),
            selection=leave_out_names(selection) if ids == 0 else selection,
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
        carried: kinds of state that are unchanged since training on D_f.
        meaning: description of each kind.
        extents: how much of a kind changed (`expunge.core.outcome.Extent`); empty if the tensors were not compared.
        recomputed: kinds of state in `rewrote` that the method computed from D_r alone; None: it is not known.
        masks: tensors in which the mask is not that of the original; empty if it is, or if they were not compared.
    """

    rewrote: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    carried: tuple[str, ...] = ()
    meaning: Mapping[str, str] = dataclasses.field(default_factory=dict)
    extents: Mapping[str, Extent] = dataclasses.field(default_factory=dict)
    masks: tuple[MaskChange, ...] = ()
    recomputed: tuple[str, ...] | None = None

    __repr__ = repr_fields

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> InfluenceState:
        """Read the `state` of an `outcome.json` body."""
        lists = {key: tuple(body.get(key, ())) for key in ("rewrote", "dropped", "carried")}
        extents = {name: Extent.from_json(extent) for name, extent in body.get("extent", {}).items()}
        masks = tuple(map(MaskChange.from_json, body.get("mask", ())))
        recomputed = tuple(body["recomputed"]) if "recomputed" in body else None
        meaning = dict(body.get("meaning", {}))
        return cls(**lists, meaning=meaning, extents=extents, masks=masks, recomputed=recomputed)

    @property
    def changed(self) -> tuple[str, ...]:
        """State that changed as a whole, from what training on D_f had left; empty if it is not known."""
        return () if self.recomputed is None else list_changed(self.rewrote, self.recomputed, self.partly)

    @property
    def partly(self) -> dict[str, str]:
        """How much changed of each kind of state that was rewritten only in part."""
        partly = {name: extent for name, extent in self.extents.items() if extent.status == "partly rewritten"}
        return {name: extent.describe()[len(extent.status) :].strip(" ()") for name, extent in partly.items()}


@dataclasses.dataclass(frozen=True)
class ModelResult:
    """One model of a comparison.

    Attributes:
        label: name in the tables (`Original`, `Retrain`, `FT`, ...).
        role: `original`, `retrained` (the reference) or `unlearned`.
        scores: scores by name.
        guarantee: `exact`, `certified`, `conditional`, `behavioural`, `empirical`, or empty.
        passes, seconds, optimiser_steps: cost of the method.
        class_accuracy: accuracy in % on each class, None for a class without records.
        confidence: histogram of the probability of the true label, by part (`forget`, `retain`, and `non_members`, the
            non-member pool).
        density: density in [0, 1] of each masked tensor, by name; empty for a dense model.
        state: what the method did with state that depends on training records; None for the original.
        options, seeds, hashes, history, facts: provenance, shown unchanged.
        notes: cautions, and reasons for missing measurements; shown under the table.
        relative_to: `file` and `hash` of the declared start to which the guarantee is relative; empty if there is none.
        bound: epsilon, delta and what they follow from (`expunge.core.outcome.Outcome.bound`); empty if there is none.
        warnings: why numbers of this model mislead; shown in the banner at the top.
        file: name of the model's weights file.
        file_hash: SHA-256 of that file.
        imported: hash of the imported weights that the model is, or comes from; empty: it was trained here.
        recorded: of imported weights, what a recording of their training says: `recipe`, `split`.

    Raises:
        DataError: the role is unknown.
    """

    label: str
    role: str
    scores: Mapping[str, ReportScore] = dataclasses.field(default_factory=dict)
    guarantee: str = ""
    passes: float | None = None
    seconds: float | None = None
    optimiser_steps: float | None = None
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
    relative_to: Mapping[str, str] = dataclasses.field(default_factory=dict)
    bound: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    warnings: tuple[ReportWarning, ...] = ()
    file: str = ""
    file_hash: str = ""
    imported: str = ""
    recorded: tuple[str, ...] = ()

    __repr__ = repr_fields

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise DataError(f"unknown role {self.role!r}", where=self.label, hint=unknown_name_hint(self.role, ROLES))
        object.__setattr__(self, "class_accuracy", tuple(as_finite(value) for value in self.class_accuracy))
        for field in ("passes", "seconds", "optimiser_steps"):
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
            relative_to=dict(method.get("relative_to") or {}),
            bound=dict(method.get("bound") or {}),
            passes=cost.get("passes"),
            seconds=cost.get("seconds"),
            optimiser_steps=cost.get("optimiser_steps"),
            state=InfluenceState.from_json(body.get("state", {})),
            options=dict(method.get("options", {})),
            seeds=dict(body.get("seeds", {})),
            hashes=dict(body.get("hashes", {})),
            history=tuple(map(str, provenance.get("history", ()))),
            notes=_describe_guarantee(method),
            facts={key: provenance[key] for key in ("architecture", "data", "recipe") if provenance.get(key)},
        )


def _describe_guarantee(method: Mapping[str, Any]) -> tuple[str, ...]:
    """A note on a guarantee that is relative to a start, or has a bound."""
    relative_to, bound = method.get("relative_to"), method.get("bound")
    return (describe_guarantee(str(method.get("guarantee")), relative_to, bound),) if relative_to or bound else ()


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Models of one request and one original: the original, the unlearned models, and the retrained reference.

    Attributes:
        label: `dense`, `90 % sparse`, ...
        models: in the order of the tables; at most one original and at most one retrained.
        floors: noise floors by score name, in addition to those of the reference's scores (such as the floor of the
            disparity average).
        references: number of retrained models that `floors` were computed from; 0: as many as the reference's seeds.

    Raises:
        DataError: there are two original or two retrained models.
    """

    label: str
    models: tuple[ModelResult, ...]
    floors: Mapping[str, float] = dataclasses.field(default_factory=dict)
    references: int = 0

    __repr__ = repr_fields

    def __post_init__(self) -> None:
        for role in ("original", "retrained"):
            if sum(model.role == role for model in self.models) > 1:
                raise DataError(f"there is more than one {role} model; a comparison has one", where=self.label)

    def _find_role(self, role: str) -> ModelResult | None:
        return next((model for model in self.models if model.role == role), None)

    @property
    def original(self) -> ModelResult | None:
        """The original model."""
        return self._find_role("original")

    @property
    def reference(self) -> ModelResult | None:
        """The retrained model."""
        return self._find_role("retrained")

    @property
    def unlearned(self) -> tuple[ModelResult, ...]:
        """The unlearned models."""
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
        copies: counts of the copies of D_f in other parts of the split, one for each different split.
        shared_subjects: number of records of the subjects of D_f among the records of `test` and `non_members`; None:
            it is not known.

    Raises:
        DataError: there is no comparison, or a model has a different number of class accuracies than class names.
    """

    title: str
    request: RequestSummary
    comparisons: tuple[Comparison, ...]
    class_names: tuple[str, ...] = ()
    accuracy_on: str = "test records"
    copies: tuple[Copies, ...] = ()
    shared_subjects: Mapping[str, int] | None = None

    __repr__ = repr_fields

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
        data: name of the data source (`digits`), or its title.
        architecture: name of the architecture (`small-cnn`), or its title.
        summary: one sentence; generated from the content if empty.
        limits: further lines for "What this does not show".
        stored: names of the tensors that are stored with the originals, by the entry of the store that holds them.
        provenance: facts about the run, shown unchanged (nested mappings allowed).
        versions: versions of the libraries that affect the numbers.
        created: the date of the run as a string, or empty. It is never taken from the clock, so that the same content
            gives the same bytes; `make_report_content` takes it from the entries of the store.

    Raises:
        DataError: there is no scenario.
    """

    title: str
    scenarios: tuple[Scenario, ...]
    data: str = ""
    architecture: str = ""
    summary: str = ""
    limits: tuple[str, ...] = ()
    stored: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    created: str = ""

    __repr__ = repr_fields

    def __post_init__(self) -> None:
        if not self.scenarios:
            raise DataError("a report needs at least one scenario", where=self.title)
