"""The report of results in this process."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from expunge.core.errors import RequestError
from expunge.core.outcome import Outcome
from expunge.core.show import repr_fields, truncate
from expunge.evaluation import Scores
from expunge.evaluation.registry.reference_checks import describe_differing_ids
from expunge.experiments.store.environment import versions
from expunge.report import (
    Comparison,
    Measured,
    ReportContent,
    RequestSummary,
    Scenario,
    assemble_comparison,
    count_shared_subjects,
    list_copies,
)
from expunge.report.formatting import describe_title

from .measure import Scored, ScoreOptions
from .references import add_floors

#: So many methods are named in the title of a report; else they are counted.
_NAMED = 3


@dataclasses.dataclass(frozen=True, eq=False)
class Shown:
    """A result that a report shows.

    Attributes:
        model: the unlearned or retrained model.
        outcome: what its method did.
        before: the model before the request.
        created: the day of the request.
        name: in the report; empty: that of its method.
    """

    model: Scored
    outcome: Outcome
    before: Scored
    created: str = ""
    name: str = ""

    __repr__ = repr_fields

    @property
    def original(self) -> tuple[str, str]:
        """Hashes of weights and mask of the model before the request."""
        trained = self.before.trained
        return trained.hash, "" if trained.mask is None else trained.mask.hash()


#: The limit of a report with several references.
_SEVERAL = (
    "Gaps are those to the first of {count} retrained models, and depend on which one that is. The others only give "
    "the noise floor: weights {hashes}."
)


def check_same_request(result: Shown, other: Shown) -> None:
    """Raise RequestError, with the ids that differ, if two results are not of the same request and retain set.

    Args:
        result: the first result.
        other: the other one.
    """
    name = other.name or other.outcome.method
    if result.model.records.hash != other.model.records.hash:
        what = f"{name} is a model of other data: {other.model.records.name}"
        raise RequestError(what, where="others", hint="adopt both models with the same data")
    first, second = result.outcome.request, other.outcome.request
    if first.hash != second.hash:
        found = describe_differing_ids(first.record_ids, second.record_ids, "that of this result", f"that of {name}")
        what = f"{name} is the result of another request: {found or 'other new values of the same records'}"
        raise RequestError(what, where="others", hint="forget the same rows with each method")
    if result.model.trained.split.hash != other.model.trained.split.hash:
        own, its = result.model.trained.split.retain, other.model.trained.split.retain
        found = describe_differing_ids(own, its, "that of this result", f"that of {name}")
        what = f"{name} has another retain set: {found}" if found else f"{name} has another split, or other corrections"
        raise RequestError(what, where="others", hint="the results of a chain need the same earlier requests")


def report_results(
    results: Sequence[Shown],
    references: Sequence[Shown],
    options: ScoreOptions,
    *,
    network: str,
    title: str = "",
    provenance: Mapping[str, Any] | None = None,
    ids: bool = False,
) -> tuple[Scores, ReportContent]:
    """Score results of one request, their references and the models before it, and make the content of their report.

    Results of different originals (a dense and a sparse one) are compared apart.

    Args:
        results: the unlearned models.
        references: the retrained models; the first, which may be one of the results, is that of the gaps, and all give
            the noise floors.
        options: of the scores.
        network: name of the architecture.
        title: of the report.
        provenance: facts of the run.
        ids: whether the ids of the forgotten records are printed.

    Returns:
        The scores of the first result, and the content.

    Raises:
        RequestError: the reference was trained on the records, or on another retain set; or a result is one of another
            request or retain set.
    """
    first, groups = results[0], dict[tuple[str, str], list[Shown]]()
    for result in results:
        check_same_request(first, result)
        groups.setdefault(result.original, []).append(result)
    compared = [_compare(group, references, options) for group in groups.values()]
    request, records = first.outcome.request, first.model.records.name
    summary = RequestSummary.from_json(
        request.to_json(), retained=first.outcome.cost.retain_records, ids=None if ids else 0
    )  # fmt: skip
    names = tuple(row["class"] for row in compared[0].original.details["classes"])
    measured = [found for group in compared for found in group.shown.values()]
    scenario = Scenario(
        title=describe_title(summary, names),
        request=summary,
        comparisons=_assemble(compared),
        class_names=names,
        copies=list_copies(found.scores for found in measured),
        shared_subjects=count_shared_subjects(found.scores for found in measured),
    )
    made = list(dict.fromkeys(result.outcome.method for result in results))
    methods = " and ".join([", ".join(made[:-1]), made[-1]]) if 1 < len(made) <= _NAMED else made[0]
    methods = methods if len(made) <= _NAMED else f"{len(made)} methods"
    created = [result.created for result in (*results, *references)]
    further = compared[0].references[1:]
    return compared[0].scores, ReportContent(
        title=title or f"{network}, {records}: forgetting with {methods}",
        scenarios=(scenario,),
        data=records,
        architecture=network,
        provenance=dict(provenance or {}),
        versions=versions(),
        created=max(created),
        limits=(_SEVERAL.format(count=1 + len(further), hashes=", ".join(further)),) if further else (),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Compared:
    """Results of one original: what was measured, by name; the scores of the first."""

    before: Scored
    original: Measured
    shown: Mapping[str, Measured]
    reference: str | None
    scores: Scores
    floors: Mapping[str, float]
    references: tuple[str, ...]

    def describe(self) -> str:
        """`dense`, or the sparsity."""
        sparsity = 100 * float(self.original.scores.about["sparsity"])
        return f"{sparsity:.4g} % sparse" if self.original.details["density"] else "dense"


def label_results(results: Sequence[Shown]) -> list[str]:
    """Name results of one original by their methods; results of one method also by the options that differ.

    Args:
        results: the results; those with a name keep it.
    """
    labels, given = list[str](), [result.name for result in results]
    for result in results:
        outcome, label = result.outcome, result.name or result.outcome.method
        alike = [other.outcome for other in results if other.outcome.method == outcome.method]
        if not result.name and (len(alike) > 1 or label in given):
            settings = [{**other.options, "seed": other.seed} for other in alike]
            own = {**outcome.options, "seed": outcome.seed}
            differing = [key for key in own if any(found.get(key) != own[key] for found in settings)]
            said = ", ".join(f"{key}={truncate(str(own[key]), 40)}" for key in differing)
            label += f" ({said})" if said else ""
        count, stem = 2, label
        while label in labels or (not result.name and label in given):
            label, count = f"{stem} [{count}]", count + 1
        labels.append(label)
    return labels


def _compare(results: Sequence[Shown], references: Sequence[Shown], options: ScoreOptions) -> _Compared:
    """Measure results of one original, their references and the original."""
    first, labels = results[0], label_results(results)
    reference = references[0] if references else None
    before, request = first.before, first.outcome.request
    shown: dict[str, Measured] = {}
    found, label = None, None
    if reference is not None:
        retrained, made = reference.model, reference.outcome
        found = first.model.score_reference(retrained, request, options, before, made)
        others = [name for name, result in zip(labels, results, strict=True) if result.model is not retrained]
        count = f"first of {len(references)} references" if len(references) > 1 else ""
        note = count or ("reference" if made.method in others else "")
        label = made.method + (f" ({note})" if note else "")
        shown[label] = retrained.measure(request, found, made)
    scores: list[Scores] = []
    against = None if reference is None else reference.model
    for name, result in zip(labels, results, strict=True):
        outcome = result.outcome
        scores.append(result.model.score(request, options, outcome=outcome, reference=found, retrained=against))
        if result.model is not against:
            shown[name] = result.model.measure(request, scores[-1], outcome)
    original = before.measure(request, before.score(request, options, reference=found))
    all_found = [] if found is None else [found]
    all_found += [
        first.model.score_reference(other.model, request, options, before, other.outcome) for other in references[1:]
    ]
    measured = add_floors(scores[0], all_found)
    if label is not None and len(all_found) > 1:  # the banner warns of each reference
        joined = dataclasses.replace(shown[label].scores, warnings=measured.warnings)
        shown[label] = dataclasses.replace(shown[label], scores=joined)
    floors = measured.about.get("noise_floors", {})
    hashes = tuple(other.model.trained.hash[:12] for other in references)
    return _Compared(before, original, shown, label, measured, floors, hashes)


def _assemble(compared: Sequence[_Compared]) -> tuple[Comparison, ...]:
    """The comparisons, named by sparsity, and where two are alike also by what was done before."""
    names = [group.describe() for group in compared]
    lines = [group.before.trained.provenance.history[-1:] for group in compared]
    labels = [
        name if names.count(name) == 1 else ", ".join([name, *line, f"weights {group.before.trained.hash[:8]}"])
        for name, line, group in zip(names, lines, compared, strict=True)
    ]
    return tuple(
        dataclasses.replace(
            assemble_comparison(
                label, [group.original], {name: [found] for name, found in group.shown.items()}, group.reference
            ),
            floors=group.floors,
            references=len(group.references),
        )
        for label, group in zip(labels, compared, strict=True)
    )
