"""MIA-Efficacy with the attack fitted on other ratios of members to non-members [Xiao2025]."""

from __future__ import annotations

from collections.abc import Mapping

from expunge.evaluation.registry.definition import Measurement, Missing, register_score, without_retained, without_test
from expunge.evaluation.registry.inputs import ScoreInputs

from .membership import get_confidences, run_svc_attack, space_evenly


@register_score(
    "MIA-Efficacy 1:4", unit="%", direction="reference", needs=("predictions", "svc_ratios"),
    citation="[Xiao2025], section 5", position=141, decimals=2,
)  # fmt: skip
@register_score(
    "MIA-Efficacy 1:2", unit="%", direction="reference", needs=("predictions", "svc_ratios"),
    citation="[Xiao2025], section 5", position=142, decimals=2,
)  # fmt: skip
@register_score(
    "MIA-Efficacy 4:5", unit="%", direction="reference", needs=("predictions", "svc_ratios"),
    citation="[Xiao2025], section 5", position=143, decimals=2,
)  # fmt: skip
@register_score(
    "MIA-Efficacy 9:10", unit="%", direction="reference", needs=("predictions", "svc_ratios"),
    citation="[Xiao2025], section 5", position=144, decimals=2,
)  # fmt: skip
@register_score(
    "MIA-Efficacy 1:1", unit="%", direction="reference", needs=("predictions", "svc_ratios"),
    citation="[Xiao2025], section 5", position=145, decimals=2,
)  # fmt: skip
@register_score(
    "MIA-Efficacy 10:9", unit="%", direction="reference", needs=("predictions", "svc_ratios"),
    citation="[Xiao2025], section 5", position=146, decimals=2,
)  # fmt: skip
@register_score(
    "MIA-Efficacy 5:4", unit="%", direction="reference", needs=("predictions", "svc_ratios"),
    citation="[Xiao2025], section 5", position=147, decimals=2,
)  # fmt: skip
@register_score(
    "MIA-Efficacy 2:1", unit="%", direction="reference", needs=("predictions", "svc_ratios"),
    citation="[Xiao2025], section 5", position=148, decimals=2,
)  # fmt: skip
@register_score(
    "MIA-Efficacy 4:1", unit="%", direction="reference", needs=("predictions", "svc_ratios"),
    citation="[Xiao2025], section 5", position=149, decimals=2,
)  # fmt: skip
@register_score(
    "MIA-Efficacy 9:1", unit="%", direction="reference", needs=("predictions", "svc_ratios"),
    citation="[Xiao2025], section 5", position=150, decimals=2,
)  # fmt: skip
def measure_efficacy_by_ratio(inputs: ScoreInputs) -> Mapping[str, Measurement | Missing]:
    """MIA-Efficacy with the attack fitted on this ratio of members to non-members; only with `svc_ratios`.

    Let n be the number of members of MIA-Efficacy (after `svc_records`). A ratio a:b above 1 takes n members and
    n b / a non-members; a ratio below 1 takes n a / b members and n non-members; both are evenly spaced over the sets
    of MIA-Efficacy. 1:1 equals MIA-Efficacy if its two sets are equally large [Xiao2025], section 5.

    Raises:
        ConfigError: `svc_records` is below 2.
        DataError: there are no retain records to fit on.
    """
    if not inputs.parts.has_test:
        return {f"MIA-Efficacy {ratio}": without_test(f"MIA-Efficacy {ratio}") for ratio in inputs.svc_ratios}
    if not len(inputs.parts.retain):
        return {f"MIA-Efficacy {ratio}": without_retained(f"MIA-Efficacy {ratio}") for ratio in inputs.svc_ratios}
    retain, test, most = get_confidences(inputs)
    size = min(len(test), len(retain))
    limit = size if most is None else min(size, most)
    found = {}
    for ratio in inputs.svc_ratios:
        a, b = (int(part) for part in ratio.split(":"))
        members = space_evenly(space_evenly(retain[:size], limit), max(1, round(limit * min(1.0, a / b))))
        non_members = space_evenly(space_evenly(test, limit), max(1, round(limit * min(1.0, b / a))))
        predicted = run_svc_attack(members, non_members, inputs.parts.forget.legacy_confidence)
        found[f"MIA-Efficacy {ratio}"] = Measurement(
            100.0 * float((~predicted).mean()),
            f"Fraction of D_f that the confidence attack predicts to be non-members when fitted on {len(members)} "
            f"retain and {len(non_members)} test records, evenly spaced over the sets of MIA-Efficacy.",
        )
    return found
