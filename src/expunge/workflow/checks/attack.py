"""Findings of `check` about the time of the membership attack."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from expunge.core.request import ForgetRequest
    from expunge.core.split import Split
    from expunge.data import Records
    from expunge.experiments.config.run_config import RunConfig
    from expunge.models import Finding

#: An attack that takes longer is a warning.
_LONG_SECONDS = 30


def inspect_attack(config: RunConfig, records: Records, split: Split, request: ForgetRequest) -> list[Finding]:
    """Estimate the time of the membership attack, with the number of records that the run would choose.

    Args:
        config: the configuration.
        records: the records.
        split: their split.
        request: the request.
    """
    from expunge.evaluation.scores.membership import choose_svc_records, estimate_svc_seconds
    from expunge.models import Finding

    test = len(split.test)
    if split.retain_absent:  # it needs members
        return []
    if request.forgotten_class is not None:
        test = int((records.labels[records.rows(split.test)] != request.forgotten_class).sum())
    members = min(test, len(split.retain) - len(request.record_ids))
    chosen = config.evaluation.svc_records
    limit = choose_svc_records(chosen, test)

    def estimate(most: int) -> float:
        sides = min(members, most), min(test, most)
        return estimate_svc_seconds(*sides) + estimate_svc_seconds(*(min(n // 2, most) for n in (members, test)))

    seconds = estimate(test if limit is None else limit)
    sides = [f"{min(n, test if limit is None else limit):,}" for n in (members, test)]
    message = f"the membership attack is fitted on {sides[0]} members and {sides[1]} non-members"
    message += f", about {seconds:.0f} s for each model that is scored"
    if limit is not None and chosen is None:
        message += f"; [Jia2023] would use all {members:,} and {test:,}, about {estimate(test):.0f} s"
        return [Finding("warning", "evaluation", message, "evaluation.svc_records=all uses all")]
    if seconds >= _LONG_SECONDS:
        return [Finding("warning", "evaluation", message, "evaluation.svc_records=N limits both numbers to N")]
    if seconds >= 1:
        return [Finding("ok", "evaluation", f"{message} (evaluation.svc_records)")]
    return []
