"""Models and comparisons of a report, from what was measured: in finished stages, or in this process."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from expunge.core.show import repr_fields
from expunge.data.quality import Copies
from expunge.evaluation.score import NO_REFERENCE, Scores
from expunge.evaluation.seeds import mean, noise_floors

from .content import Comparison, ModelResult, ReportWarning
from .read import average_over_seeds, read_class_accuracy, read_histograms, read_scores


@dataclasses.dataclass(frozen=True)
class Measured:
    """What was measured of one model.

    Attributes:
        scores: of the model.
        details: the body of details.json: `confidence`, `classes`, `density`.
        outcome: the body of outcome.json; empty for an original.
        hashes: of an original: `weights` and `mask`.
        file: name of its weights file, and `file_hash`, the SHA-256 of the file.
    """

    scores: Scores
    details: Mapping[str, Any]
    outcome: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    hashes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    file: str = ""
    file_hash: str = ""

    __repr__ = repr_fields


def assemble_comparison(
    label: str,
    originals: Sequence[Measured],
    methods: Mapping[str, Sequence[Measured]],
    reference: str | None,
) -> Comparison:
    """Assemble the models of one original: itself, and those of each method, as means over their seeds.

    Histograms, provenance and file of a model are those of its first seed.

    Args:
        label: `dense`, `90 % sparse`, ...
        originals: the original of each seed; empty: it was not scored.
        methods: the models of each method, one for each seed, by the name in the tables.
        reference: the name of the retrained reference in `methods`; None: there is none.

    Examples:
        >>> from expunge.evaluation import Score, Scores
        >>> from expunge.report import Measured, assemble_comparison
        >>> details = {"classes": [], "confidence": {"edges": [0.0, 1.0], "parts": {}}, "density": {}}
        >>> cost = {"passes": 3.0, "seconds": 1.5}
        >>> score = Score("UA", 6.0, "%", "reference", "100 - accuracy on D_f", reference=5.0)
        >>> run = Measured(Scores((score,)), details, {"method": {"name": "FT"}, "cost": cost})
        >>> model = assemble_comparison("dense", (), {"FT": [run]}, None).models[0]
        >>> model.label, model.role, model.passes, model.scores["UA"].signed_gap
        ('FT', 'unlearned', 3.0, 1.0)
    """
    models, floors = [], {}
    if originals:
        model = ModelResult("Original", "original", hashes=dict(originals[0].hashes))
        models.append(_add_measured(model, originals))
    for name, runs in methods.items():
        role = "retrained" if name == reference else "unlearned"
        model = ModelResult.from_outcome(runs[0].outcome, role=role, label=name)
        costs = [run.outcome["cost"] for run in runs]
        model = dataclasses.replace(
            model,
            passes=mean([cost["passes"] for cost in costs]),
            seconds=mean([cost["seconds"] for cost in costs]),
            optimiser_steps=None if None in (steps := [cost.get("optimiser_steps") for cost in costs]) else mean(steps),
            file=runs[0].file,
            file_hash=runs[0].file_hash,
        )
        models.append(_add_measured(model, runs))
        if role == "retrained":
            values = [{score.name: score.value for score in run.scores} for run in runs]
            floors = noise_floors(values, [run.scores.about.get("weights") for run in runs])
    return Comparison(label, tuple(models), floors)


def list_copies(scores: Iterable[Scores]) -> tuple[Copies, ...]:
    """List the counts of copies of D_f that scores record, without duplicates.

    Args:
        scores: of the models of one request.

    Examples:
        >>> from expunge.evaluation import Scores
        >>> from expunge.report import list_copies
        >>> list_copies([Scores(()), Scores(())])
        ()
    """
    found: list[Copies] = []
    for one in scores:
        copies = Copies.from_json(one.about["copies"]) if "copies" in one.about else None
        if copies is not None and copies not in found:
            found.append(copies)
    return tuple(found)


def count_shared_subjects(scores: Iterable[Scores]) -> dict[str, int] | None:
    """Count the test records and non-members of subjects of D_f, by part; the most that any of the scores records.

    Args:
        scores: of the models of one request.

    Returns:
        None: no scores record it, because the data have no subjects.

    Examples:
        >>> from expunge.evaluation import Scores
        >>> from expunge.report import count_shared_subjects
        >>> count_shared_subjects([Scores((), {"shared_subjects": {"test": 0, "non_members": 2}}), Scores(())])
        {'test': 0, 'non_members': 2}
    """
    found = [one.about["shared_subjects"] for one in scores if "shared_subjects" in one.about]
    return {name: max(shared[name] for shared in found) for name in ("test", "non_members")} if found else None


def _add_measured(model: ModelResult, runs: Sequence[Measured]) -> ModelResult:
    """Add scores and accuracies by class (mean over seeds), and histograms and densities (of the first seed)."""
    notes = dict.fromkeys(note for run in runs for note in run.scores.notes)
    warnings = [ReportWarning(found.message, code=found.code) for run in runs for found in run.scores.warnings]
    return dataclasses.replace(
        model,
        warnings=tuple(dict.fromkeys(warnings)),
        imported=str(runs[0].scores.about.get("imported", "")),
        recorded=tuple(map(str, runs[0].scores.about.get("recorded", ()))),
        scores=average_over_seeds(
            [read_scores(run.scores) for run in runs], [run.scores.about.get("weights") for run in runs]
        ),
        class_accuracy=_average([read_class_accuracy(run.details["classes"]) for run in runs]),
        confidence=read_histograms(runs[0].details["confidence"]),
        density=dict(runs[0].details["density"]),
        notes=model.notes + tuple(note for note in notes if model.role != "retrained" or note != NO_REFERENCE),
    )


def _average(rows: Sequence[tuple[float | None, ...]]) -> tuple[float | None, ...]:
    columns = zip(*rows, strict=True)
    return tuple(None if None in column else mean(column) for column in columns)
