"""The confidence attack with one threshold on the non-member pool: AUC and TPR at 1 % FPR."""

from __future__ import annotations

from expunge.core.show import plural
from expunge.evaluation.auc import Separation, draw_balanced_sets, separation
from expunge.evaluation.registry.definition import Measurement, Missing, register_score
from expunge.evaluation.registry.inputs import ScoreInputs
from expunge.evaluation.score import Interval

#: Shown in place of a value.
_NO_NON_MEMBERS = "no non-members"
#: Why not all records are used.
_BALANCED = " (as many of each, drawn from the classes of D_f)"


def _separate(inputs: ScoreInputs) -> tuple[Separation, str] | None:
    """The result of the attack and the sets that it compares; None if the pool has no record of the classes of D_f."""
    parts = inputs.parts
    members, non_members = draw_balanced_sets(parts, inputs.seed)
    if len(non_members) == 0:
        return None
    of_class = ""
    if parts.forgotten_class is not None:
        of_class = f", those of the forgotten class {parts.class_names[parts.forgotten_class]!r}"
    result = separation(members.confidence, non_members.confidence, seed=inputs.seed)
    ours = _describe_drawn(len(members), len(parts.forget), "record")
    others = _describe_drawn(len(non_members), len(parts.non_members), "non-member")
    drawn = "" if len(members) == len(parts.forget) and len(non_members) == len(parts.non_members) else _BALANCED
    return result, f"{ours} of D_f against {others}{of_class}{drawn}"


def _describe_drawn(count: int, of: int, word: str) -> str:
    """`40 records`, or `40 of 297 records` if they were drawn from more."""
    return plural(count, word) if count == of else f"{count:,} of {plural(of, word)}"


@register_score(
    "AUC", direction="reference", needs=("predictions",), position=170, gap=True, table="main",
    citation="Mann-Whitney statistic (Hanley and McNeil 1982); TPR at low FPR: Carlini et al., S&P 2022",
)  # fmt: skip
def measure_auc(inputs: ScoreInputs) -> Measurement | Missing:
    """Probability that a record of D_f has a higher confidence than a non-member; ties count half."""
    found = inputs.once(_separate)
    if found is None:
        pool = "there is no non-member pool"
        if len(inputs.parts.non_members):
            pool = "the non-member pool has no records of the classes of D_f"
        return Missing(f"{pool}: the AUC was not computed", _NO_NON_MEMBERS)
    result, sets = found
    return Measurement(
        result.auc,
        f"Probability that a record of D_f has a higher confidence than a non-member: {sets}. "
        "0.5: indistinguishable from non-members; above 0.5: recognisable as members; below 0.5: over-unlearned, "
        "and recognisable by that.",
        result.auc_interval,
    )


@register_score(
    "TPR at 1% FPR", unit="%", direction="reference", needs=("predictions",), position=180, table="main",
    citation="Mann-Whitney statistic (Hanley and McNeil 1982); TPR at low FPR: Carlini et al., S&P 2022",
)  # fmt: skip
def measure_tpr(inputs: ScoreInputs) -> Measurement | Missing:
    """Fraction of D_f at or above a confidence threshold that at most 1 % of the non-members reach."""
    found = inputs.once(_separate)
    if found is None:
        return Missing(reason=_NO_NON_MEMBERS)
    result, sets = found
    interval = result.tpr_interval
    return Measurement(
        100.0 * result.tpr,
        f"Fraction of the records of D_f at or above a confidence threshold that at most 1 % of the non-members reach: "
        f"{sets}.",
        interval if interval is None else Interval(100.0 * interval.low, 100.0 * interval.high, interval.level),
    )
