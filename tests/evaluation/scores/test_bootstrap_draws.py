"""The bootstrap interval of the AUC is made of all resamples, also where they are drawn in several chunks."""

from __future__ import annotations

import numpy as np
import pytest
from measured import measure
from sklearn.metrics import roc_auc_score

from expunge.evaluation.auc import draw_balanced_sets, separation

EXTREMES = 1 - 1e-12  # at this level the ends of the interval are the smallest and the largest resample


def values(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(11)
    return rng.normal(0.2, 1, count), rng.normal(0, 1, count)


def test_more_resamples_than_fit_in_one_chunk_are_all_used() -> None:
    """6,000 distinct values make chunks of 166 resamples: the range of 10 chunks is wider than that of the first."""
    members, non_members = values(3000)
    first = separation(members, non_members, resamples=166, level=EXTREMES)
    every = separation(members, non_members, resamples=1660, level=EXTREMES)
    for one, all_of_them in ((first.auc_interval, every.auc_interval), (first.tpr_interval, every.tpr_interval)):
        assert one is not None
        assert all_of_them is not None
        assert all_of_them.low <= one.low + 1e-9
        assert all_of_them.high >= one.high - 1e-9
        assert all_of_them.high - all_of_them.low > one.high - one.low + 1e-3


@pytest.mark.parametrize("resamples", [1, 3])
def test_resamples_of_very_many_values_are_drawn_one_by_one(resamples: int) -> None:
    """With more than half a million distinct values a chunk is one resample."""
    members, non_members = values(260_000)
    interval = separation(members, non_members, resamples=resamples, level=EXTREMES).auc_interval
    assert interval is not None
    assert (interval.high > interval.low) == (resamples > 1)
    truth = roc_auc_score(np.r_[np.ones(260_000), np.zeros(260_000)], np.r_[members, non_members])
    assert interval.low == pytest.approx(truth, abs=0.01)
    assert interval.high == pytest.approx(truth, abs=0.01)


def test_scores_in_percent_have_intervals_in_percent(world) -> None:
    rows = world.records.rows(world.request.record_ids)
    world.table[rows, world.records.labels[rows]] += np.float32(2.0)  # so that the lower end is above 0
    found = measure(("AUC", "TPR at 1% FPR"), parts=world.parts(), seed=4)
    members, non_members = draw_balanced_sets(world.parts(), seed=4)
    plain = separation(members.confidence, non_members.confidence, seed=4)
    tpr, auc = found["TPR at 1% FPR"], found["AUC"]
    assert plain.tpr_interval is not None
    assert 0 < plain.tpr_interval.low < plain.tpr_interval.high < 1
    assert (tpr.value, tpr.interval.low, tpr.interval.high) == pytest.approx(
        (100 * plain.tpr, 100 * plain.tpr_interval.low, 100 * plain.tpr_interval.high)
    )
    assert (auc.value, auc.interval) == (plain.auc, plain.auc_interval)
    assert tpr.interval.low <= tpr.value <= tpr.interval.high
