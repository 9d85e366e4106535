"""Findings about an adopted model, and about a method on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from expunge.core.errors import ExpungeError
from expunge.core.request import ForgetRequest
from expunge.core.trained import Trained
from expunge.data.quality import count_copies, describe_copies, find_cautions
from expunge.data.records import Records
from expunge.evaluation.predictions import select_scored_ids
from expunge.evaluation.registry.reference_checks import sample_training_accuracy
from expunge.methods import Method
from expunge.models import describe_model
from expunge.models.inspect import Finding
from expunge.training import Runtime
from expunge.workflow.check import Check

from .prepare import prepare
from .rows import Rows
from .table import describe_reads


def check_method(
    trained: Trained,
    records: Records,
    runtime: Runtime,
    method: str | Method | None,
    options: Mapping[str, Any],
    rows: Rows | ForgetRequest | None,
    make_request: Callable[[Rows | ForgetRequest], ForgetRequest],
) -> Check:
    """Check data, split, request, model and method; nothing is trained.

    Args:
        trained: the model.
        records: the records.
        runtime: device and precision.
        method: a name, or a method with its options; None: it is not checked.
        options: of a method that is named.
        rows: the rows to forget; None: no request is checked.
        make_request: makes the request of rows.
    """
    found = [Finding("warning", "data", caution.message, caution.hint) for caution in find_cautions(records)]
    counts = trained.split.counts()
    found.append(Finding("ok", "split", ", ".join(f"{part} {count}" for part, count in counts.items() if count)))
    for part, lacking in (("test", "TA and the attack of [Jia2023]"), ("non_members", "the AUC")):
        if not counts[part]:
            found.append(Finding("warning", "split", f"there are no {part} records: {lacking} cannot be measured"))
    found += describe_model(trained.model, records, mask=trained.mask).findings
    warnings = sample_training_accuracy(trained, records, runtime)
    found += [Finding("warning", "model", warning.message) for warning in warnings]
    request = None
    if rows is not None:
        try:
            request = make_request(rows)
            found += _check_copies(trained, records, request)
        except ExpungeError as error:
            found.append(_report(error, "forget"))
    if method is not None:
        try:
            ready = prepare(trained, method, options, records, request)
            guarantee = ready.method.find_guarantee(ready.trained)
            found.append(Finding("ok", "method", f"{ready.method.name}, guarantee {guarantee}"))
            found += [Finding("warning", "method", text) for text in ready.cautions]
            reads = describe_reads(ready, records, request)
            found += [Finding("ok", "method", f"it reads {reads}")] if reads else []
            cost = ready.method.describe_cost(ready.trained)
            found += [Finding("ok", "method", *cost)] if cost is not None else []
        except ExpungeError as error:
            found.append(_report(error, "method"))
    return Check(tuple(found))


def _check_copies(trained: Trained, records: Records, request: ForgetRequest) -> list[Finding]:
    if trained.split.retain_absent:
        of = f"{len(trained.split.retain):,} training records, of which the others are declared to be gone"
        return [Finding("ok", "forget", f"{len(request.record_ids):,} of {of}")]
    scored = select_scored_ids(trained.split, request)
    parts = {name: records.rows(scored[name]) for name in ("retain", "non_members")}
    copies = count_copies(records, records.rows(request.record_ids), parts)
    count = Finding("ok", "forget", f"{len(request.record_ids):,} of {len(trained.split.retain):,} training records")
    return [count, *(Finding("warning", "forget", line) for line in describe_copies(copies))]


def _report(error: ExpungeError, subject: str) -> Finding:
    where = "" if error.where is None else f"{error.where}: "
    return Finding("error", subject, f"{where}{error.what}", error.hint or "")
