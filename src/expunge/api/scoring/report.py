"""The report of results in this process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from expunge.core.outcome import Outcome
from expunge.evaluation import Scores
from expunge.experiments.store.environment import versions
from expunge.report import (
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


def report_result(
    before: Scored,
    result: tuple[Scored, Outcome],
    reference: tuple[Scored, Outcome] | None,
    options: ScoreOptions,
    *,
    network: str,
    title: str = "",
    provenance: Mapping[str, Any] | None = None,
    ids: bool = False,
    created: str = "",
) -> tuple[Scores, ReportContent]:
    """Score a result, its reference and the model before the request, and make the content of a report of them.

    Args:
        before: the model before the request.
        result: the unlearned model and its outcome.
        reference: the retrained model and its outcome; None: there is none. It may be the result.
        options: of the scores.
        network: name of the architecture.
        title: of the report.
        provenance: facts of the run.
        ids: whether the ids of the forgotten records are printed.
        created: the date.

    Returns:
        The scores of the result, and the content.

    Raises:
        RequestError: the reference was trained on the records, or on another retain set.
    """
    (model, outcome), request = result, result[1].request
    shown: dict[str, Measured] = {}
    first = None
    if reference is not None:
        retrained, made = reference
        first = model.score_reference(retrained, request, options, before, made)
        name = made.method + (" (reference)" if made.method == outcome.method and model is not retrained else "")
        shown[name] = retrained.measure(request, first, made)
    scores = model.score(
        request, options, outcome=outcome, reference=first, retrained=None if reference is None else reference[0]
    )
    if reference is None or reference[0] is not model:
        shown[outcome.method] = model.measure(request, scores, outcome)
    original = before.measure(request, before.score(request, options, reference=first))
    names = tuple(row["class"] for row in original.details["classes"])
    summary = RequestSummary.from_json(
        request.to_json(), retained=outcome.cost.retain_records, ids=None if ids else 0
    )  # fmt: skip
    sparsity = 100 * float(original.scores.about["sparsity"])
    comparison = assemble_comparison(
        f"{sparsity:.4g} % sparse" if original.details["density"] else "dense",
        [original],
        {label: [found] for label, found in shown.items()},
        None if reference is None else next(iter(shown)),
    )
    records = model.records.name
    scenario = Scenario(
        title=describe_title(summary, names),
        request=summary,
        comparisons=(comparison,),
        class_names=names,
        copies=list_copies(found.scores for found in shown.values()),
        shared_subjects=count_shared_subjects(found.scores for found in shown.values()),
    )
    return scores, ReportContent(
        title=title or f"{network}, {records}: forgetting with {outcome.method}",
        scenarios=(scenario,),
        data=records,
        architecture=network,
        provenance=dict(provenance or {}),
        versions=versions(),
        created=created,
    )
