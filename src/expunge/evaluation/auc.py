"""Balanced AUC of the confidence attack on the unseen pool, with bootstrap intervals."""

from __future__ import annotations

import dataclasses

import numpy as np

from expunge.core.errors import DataError
from expunge.core.seeds import derive, mix, numpy_generator, record_keys

from .predictions import Floats, Parts, Predictions
from .score import Interval, Score

SOURCE = "Mann-Whitney statistic (Hanley and McNeil 1982); TPR at low FPR: Carlini et al., S&P 2022"
MAX_FPR = 0.01


@dataclasses.dataclass(frozen=True)
class Separation:
    """How well a feature tells members from non-members.

    Attributes:
        auc: P(member > non-member) + P(equal) / 2, in [0, 1].
        tpr: largest share of members above a threshold that at most 1 % of the non-members reach, in [0, 1].
        auc_interval, tpr_interval: percentile bootstrap intervals, or None.
    """

    auc: float
    tpr: float
    auc_interval: Interval | None = None
    tpr_interval: Interval | None = None


def _curves(members: np.ndarray, non_members: np.ndarray) -> tuple[Floats, Floats]:
    """AUC and TPR at 1 % FPR from counts per feature level (levels ascending), `B x L` each; returns `B` of each."""
    m, n = members.sum(axis=1), non_members.sum(axis=1)
    below = np.cumsum(non_members, axis=1) - non_members
    auc = np.einsum("bl,bl->b", members, below + 0.5 * non_members) / (m * n)
    reached = (n[:, None] - below) <= np.floor(MAX_FPR * n + 1e-9)[:, None]  # false positives at threshold = level
    return auc, np.where(reached, members, 0).sum(axis=1) / m


def separation(
    members: Floats, non_members: Floats, *, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> Separation:
    """AUC and TPR at 1 % FPR of "larger means member", with percentile bootstrap intervals.

    Ties count one half, so the AUC equals `sklearn.metrics.roc_auc_score`. Members and non-members are resampled apart
    (stratified). Values are replaced by their ranks once; a resample is then a count per rank, and its AUC one
    cumulative sum. A perfect separation gives an interval of zero width: the bootstrap cannot see beyond its sample.

    Args:
        members: `M` features.
        non_members: `U` features.
        resamples: number of bootstrap resamples; 0 for none.
        level: confidence level of the intervals.
        seed: seed of the resampling.

    Raises:
        DataError: one side is empty.
    """
    if len(members) == 0 or len(non_members) == 0:
        raise DataError(f"AUC of {len(members)} members against {len(non_members)} non-members")
    levels, ranks = np.unique(np.concatenate([members, non_members]), return_inverse=True)
    sides = [np.sort(ranks[: len(members)]), np.sort(ranks[len(members) :])]
    width = len(levels)
    auc, tpr = _curves(*(np.bincount(side, minlength=width)[None, :] for side in sides))
    if resamples == 0:
        return Separation(float(auc[0]), float(tpr[0]))
    rng = numpy_generator(seed, "bootstrap")
    chunk = max(1, 1_000_000 // width)
    drawn = []
    for start in range(0, resamples, chunk):
        rows = min(chunk, resamples - start)
        offset = width * np.arange(rows)[:, None]
        counts = [
            np.bincount((side[rng.integers(0, len(side), (rows, len(side)))] + offset).ravel(), minlength=rows * width)
            for side in sides
        ]
        drawn.append(_curves(*(count.reshape(rows, width) for count in counts)))
    ends = [(1 - level) / 2, (1 + level) / 2]
    auc_low, auc_high = np.quantile(np.concatenate([a for a, _ in drawn]), ends)
    tpr_low, tpr_high = np.quantile(np.concatenate([t for _, t in drawn]), ends)
    return Separation(
        float(auc[0]),
        float(tpr[0]),
        Interval(float(auc_low), float(auc_high), level),
        Interval(float(tpr_low), float(tpr_high), level),
    )


def draw(predictions: Predictions, count: int, seed: int, purpose: str) -> Predictions:
    """`count` records chosen by hash of (seed, purpose, record id): the order of the records does not matter."""
    order = np.argsort(mix(record_keys(predictions.record_ids), derive(seed, purpose)), kind="stable")
    return predictions.take(np.sort(order[:count]))


def balanced_sets(parts: Parts, seed: int) -> tuple[Predictions, Predictions]:
    """Members and non-members of the attack, equally many: from D_f, and from the unseen pool.

    The pool is restricted to the classes that occur in D_f (for class-wise forgetting: to the forgotten class);
    otherwise the attack would see the class instead of membership. The larger side is cut by a seeded draw.
    """
    pool = parts.non_members.take(np.isin(parts.non_members.labels, np.unique(parts.forget.labels)))
    count = min(len(parts.forget), len(pool))
    return draw(parts.forget, count, seed, "attack members"), draw(pool, count, seed, "attack non-members")


def auc_scores(parts: Parts, *, seed: int = 0, resamples: int = 1000) -> tuple[Score, ...]:
    """AUC and TPR at 1 % FPR of the confidence attack; empty where the pool has no record of the classes of D_f."""
    members, non_members = balanced_sets(parts, seed)
    if len(non_members) == 0:
        return ()
    result = separation(members.confidence, non_members.confidence, resamples=resamples, seed=seed)
    where = "records of the unseen pool"
    if parts.forgotten_class is not None:
        where = f"unseen records of the forgotten class {parts.class_names[parts.forgotten_class]!r}"
    sets = f"{len(members)} records of D_f against {len(non_members)} {where}"
    return (
        Score(
            "AUC",
            result.auc,
            "",
            "reference",
            f"Chance that a forgotten record has a higher confidence than a never-seen one: {sets}. "
            "0.5 = indistinguishable from never seen; above = still remembered; below = over-unlearned, which shows.",
            SOURCE,
            interval=result.auc_interval,
        ),
        Score(
            "TPR at 1% FPR",
            100.0 * result.tpr,
            "%",
            "reference",
            f"Share of D_f found by a threshold that at most 1 % of the never-seen records reach: {sets}.",
            SOURCE,
            interval=None
            if result.tpr_interval is None
            else Interval(100.0 * result.tpr_interval.low, 100.0 * result.tpr_interval.high, result.tpr_interval.level),
        ),
    )
