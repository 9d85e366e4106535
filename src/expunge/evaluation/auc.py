"""Balanced AUC of the confidence attack on the non-member pool, with bootstrap intervals."""

from __future__ import annotations

import dataclasses

import numpy as np

from expunge.core.errors import DataError
from expunge.core.seeds import derive, mix, numpy_generator, record_keys

from .predictions import Floats, Parts, Predictions
from .score import Interval

MAX_FPR = 0.01


@dataclasses.dataclass(frozen=True)
class Separation:
    """How well a feature separates members from non-members.

    Attributes:
        auc: P(member > non-member) + P(equal) / 2, in [0, 1].
        tpr: true positive rate at 1 % false positives: the largest fraction of members at or above a threshold that at
            most 1 % of the non-members reach, in [0, 1].
        auc_interval, tpr_interval: percentile bootstrap intervals, exact ones where resamples cannot vary, or None.
    """

    auc: float
    tpr: float
    auc_interval: Interval | None = None
    tpr_interval: Interval | None = None


def _compute_rates(members: np.ndarray, non_members: np.ndarray) -> tuple[Floats, Floats]:
    """AUC and TPR at 1 % FPR of `B` resamples.

    Args:
        members: `B x L` counts of members for each distinct feature value, values ascending.
        non_members: `B x L` counts of non-members, likewise.

    Returns:
        `B` AUCs and `B` true positive rates.
    """
    m, n = members.sum(axis=1), non_members.sum(axis=1)
    below = np.cumsum(non_members, axis=1) - non_members
    auc = np.einsum("bl,bl->b", members, below + 0.5 * non_members) / (m * n)
    reached = (n[:, None] - below) <= np.floor(MAX_FPR * n + 1e-9)[:, None]  # false positives at threshold = level
    return auc, np.where(reached, members, 0).sum(axis=1) / m


def separation(
    members: Floats, non_members: Floats, *, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> Separation:
    """AUC and TPR at 1 % FPR of the attack "larger values are members", with percentile bootstrap intervals.

    AUC = P(member > non-member) + P(equal) / 2 [Hanley1982]_, equal to `sklearn.metrics.roc_auc_score`. TPR at low FPR
    follows [Carlini2022]_. The bootstrap resamples members and non-members separately (stratified).

    Resamples of a perfectly separated sample are perfectly separated, too, so their percentiles would claim certainty.
    Where all resamples have the same AUC, the interval is exact: min(M, U) disjoint pairs of a member and a non-member
    are independent, all have the result that was seen, and with t = ((1 - level) / 2)^(1 / min(M, U)) the interval is
    [AUC t, 1 - (1 - AUC) t]. The interval of a TPR of 0 or 1 includes that of [Clopper1934]_ for M members:
    [0, 1 - t] or [t, 1], with t = ((1 - level) / 2)^(1 / M).

    .. [Clopper1934] Clopper, Pearson: The use of confidence or fiducial limits, Biometrika 26.
    .. [Hanley1982] Hanley, McNeil: The meaning and use of the area under a ROC curve, Radiology 143.
    .. [Carlini2022] Carlini et al.: Membership inference attacks from first principles, IEEE S&P 2022.

    Args:
        members: `M` feature values.
        non_members: `U` feature values.
        resamples: number of bootstrap resamples; 0 for no intervals.
        level: confidence level of the intervals, in (0, 1).
        seed: seed of the resampling.

    Raises:
        DataError: there are no members or no non-members.

    Examples:
        >>> import numpy as np
        >>> from expunge.evaluation import separation
        >>> separation(np.array([0.9, 0.8, 0.6]), np.array([0.5, 0.8]), resamples=0).auc
        0.75
    """
    if len(members) == 0 or len(non_members) == 0:
        raise DataError(
            f"there is no AUC of {len(members)} members against {len(non_members)} non-members",
            hint="give at least one of each",
        )
    # a feature is replaced by its rank, so that a resample is a count per rank and its AUC a cumulative sum
    levels, ranks = np.unique(np.concatenate([members, non_members]), return_inverse=True)
    ranks_by_group = [np.sort(ranks[: len(members)]), np.sort(ranks[len(members) :])]
    width = len(levels)
    auc, tpr = _compute_rates(*(np.bincount(group, minlength=width)[None, :] for group in ranks_by_group))
    if resamples == 0:
        return Separation(float(auc[0]), float(tpr[0]))
    rng = numpy_generator(seed, "bootstrap")
    chunk = max(1, 1_000_000 // width)
    drawn = []
    for start in range(0, resamples, chunk):
        rows = min(chunk, resamples - start)
        offset = width * np.arange(rows)[:, None]
        counts = [
            np.bincount(
                (group[rng.integers(0, len(group), (rows, len(group)))] + offset).ravel(), minlength=rows * width
            )
            for group in ranks_by_group
        ]
        drawn.append(_compute_rates(*(count.reshape(rows, width) for count in counts)))
    ends = [(1 - level) / 2, (1 + level) / 2]
    aucs, tprs = (np.concatenate(rates) for rates in zip(*drawn, strict=True))
    auc_low, auc_high = map(float, np.quantile(aucs, ends))
    if auc[0] in (0.0, 1.0) or width == 1:
        auc_low, auc_high = _bound(float(auc[0]), min(len(members), len(non_members)), level)
    tpr_low, tpr_high = map(float, np.quantile(tprs, ends))
    if tpr[0] in (0.0, 1.0):
        low, high = _bound(float(tpr[0]), len(members), level)
        tpr_low, tpr_high = min(tpr_low, low), max(tpr_high, high)
    return Separation(
        float(auc[0]), float(tpr[0]), Interval(auc_low, auc_high, level), Interval(tpr_low, tpr_high, level)
    )


def _bound(value: float, trials: int, level: float) -> tuple[float, float]:
    """The exact interval of a mean of trials in [0, 1] that all had the same result."""
    smallest = ((1 - level) / 2) ** (1 / trials)
    return value * smallest, 1 - (1 - value) * smallest


def draw_records(predictions: Predictions, count: int, seed: int, purpose: str) -> Predictions:
    """Draw `count` records by hash of (seed, purpose, record id); the result does not depend on their order."""
    order = np.argsort(mix(record_keys(predictions.record_ids), derive(seed, purpose)), kind="stable")
    return predictions.take(np.sort(order[:count]))


def draw_balanced_sets(parts: Parts, seed: int) -> tuple[Predictions, Predictions]:
    """Draw equally many members (from D_f) and non-members (from the non-member pool) for the attack.

    The pool is restricted to the classes that occur in D_f (for class-wise forgetting: to the forgotten class);
    otherwise the attack could use the class instead of membership. The larger set is reduced by a seeded draw.

    Args:
        parts: predictions of the model.
        seed: seed of the draw.

    Returns:
        Members and non-members; both are empty if the pool has no record of these classes.
    """
    pool = parts.non_members.take(np.isin(parts.non_members.labels, np.unique(parts.forget.labels)))
    count = min(len(parts.forget), len(pool))
    return draw_records(parts.forget, count, seed, "attack members"), draw_records(
        pool, count, seed, "attack non-members"
    )
