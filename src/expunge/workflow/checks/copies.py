"""Findings of `check` about copies of the forget set elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from expunge.core.request import ForgetRequest
    from expunge.core.split import Split
    from expunge.data import Records
    from expunge.models import Finding


def inspect_copies(records: Records, request: ForgetRequest, split: Split) -> list[Finding]:
    """Count exact and near copies of D_f in the retain set and the non-member pool.

    Where the records of D_r are absent nothing is compared: the distance of a near copy is measured on D_r.

    Args:
        records: the records.
        request: the request.
        split: their split.
    """
    from expunge.data.quality import count_copies, describe_copies
    from expunge.evaluation.predictions import select_scored_ids
    from expunge.models import Finding

    if split.retain_absent:
        return []
    scored = select_scored_ids(split, request)
    parts = {name: records.rows(scored[name]) for name in ("retain", "non_members")}
    copies = count_copies(records, records.rows(request.record_ids), parts)
    found = []
    for line in describe_copies(copies):
        hint = "a model keeps what it learned from the copies: add those that belong to the request"
        if not line.endswith("in the retain set"):
            hint = "an attack that takes the copies as non-members compares records with themselves"
        found.append(Finding("warning", "forget", line, hint))
    if not copies.found:
        message = "no record has an exact or near copy in the retain set or the non-member pool"
        found.append(Finding("ok", "forget", message))
    return found
