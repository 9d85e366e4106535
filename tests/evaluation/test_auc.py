"""AUC and its interval against scikit-learn, brute force and a known truth."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from measured import measure
from scipy.stats import norm
from sklearn.metrics import roc_auc_score, roc_curve

from expunge.core.errors import DataError
from expunge.evaluation.auc import draw_balanced_sets, separation

SCORES = ("AUC", "TPR at 1% FPR")

sample = st.lists(st.integers(0, 12).map(lambda i: i / 12), min_size=1, max_size=40)


def labelled(members, non_members):
    return np.r_[np.ones(len(members)), np.zeros(len(non_members))], np.r_[members, non_members]


@settings(max_examples=40, deadline=None)
@given(sample, sample)
def test_auc_with_ties_equals_scikit_learn(members, non_members):
    found = separation(np.array(members), np.array(non_members), resamples=0)
    truth, values = labelled(members, non_members)
    assert found.auc == pytest.approx(roc_auc_score(truth, values), abs=1e-12)
    fpr, tpr, _ = roc_curve(truth, values, drop_intermediate=False)
    assert found.tpr == pytest.approx(tpr[fpr <= 0.01].max(), abs=1e-12)


def test_tpr_at_one_percent_of_many_records_equals_scikit_learn():
    rng = np.random.default_rng(0)
    members, non_members = rng.normal(1, 1, 800).round(2), rng.normal(0, 1, 700).round(2)
    fpr, tpr, _ = roc_curve(*labelled(members, non_members), drop_intermediate=False)
    found = separation(members, non_members, resamples=0).tpr
    assert found == pytest.approx(tpr[fpr <= 0.01].max(), abs=1e-12)
    assert found > 0.05


@settings(max_examples=30, deadline=None)
@given(sample, sample, st.randoms(use_true_random=False))
def test_order_does_not_matter_and_swapping_mirrors(members, non_members, random):
    found = separation(np.array(members), np.array(non_members), resamples=50, seed=3)
    shuffled = random.sample(members, len(members)), random.sample(non_members, len(non_members))
    assert separation(np.array(shuffled[0]), np.array(shuffled[1]), resamples=50, seed=3) == found
    swapped = separation(np.array(non_members), np.array(members), resamples=0)
    assert swapped.auc == pytest.approx(1 - found.auc, abs=1e-12)


def test_monotone_transforms_change_nothing():
    rng = np.random.default_rng(1)
    a, b = rng.random(60), rng.random(50)
    assert separation(a**3, b**3, seed=1) == separation(a, b, seed=1)


def test_perfect_and_inverted_separation():
    high, low = np.linspace(0.6, 1, 30), np.linspace(0, 0.5, 30)
    assert separation(high, low).auc == 1.0
    assert separation(high, low).tpr == 1.0
    assert separation(low, high).auc == 0.0
    assert separation(low, high).tpr == 0.0


def test_interval_agrees_with_a_plain_bootstrap():
    rng = np.random.default_rng(2)
    a, b = rng.normal(0.8, 1, 80).round(1), rng.normal(0, 1, 60).round(1)
    plain = [roc_auc_score(*labelled(rng.choice(a, 80), rng.choice(b, 60))) for _ in range(300)]
    found = separation(a, b, resamples=3000).auc_interval
    assert (found.low, found.high) == pytest.approx(np.quantile(plain, [0.025, 0.975]), abs=0.02)


def coverage(shift, level, sims=200, n=60):
    rng = np.random.default_rng(4)
    truth, hits = norm.cdf(shift / np.sqrt(2)), 0
    for sim in range(sims):
        found = separation(rng.normal(shift, 1, n), rng.normal(0, 1, n), resamples=200, level=level, seed=sim)
        hits += found.auc_interval.low <= truth <= found.auc_interval.high
    return hits / sims


def test_intervals_cover_a_known_auc_at_their_nominal_level():
    assert 0.90 <= coverage(1.0, 0.95) <= 0.985
    assert 0.90 <= coverage(0.0, 0.95) <= 0.985  # no difference: 0.5 is covered
    assert 0.40 <= coverage(1.0, 0.50) <= 0.60  # negative control: a narrow interval covers less


def test_chunks_do_not_change_the_draw_count(monkeypatch):
    rng = np.random.default_rng(5)
    a, b = rng.random(3000), rng.random(3000)
    found = separation(a, b, resamples=400)
    assert found.auc_interval.high - found.auc_interval.low == pytest.approx(
        2 * 1.96 * np.sqrt(1 / (6 * 3000)), rel=0.15
    )


def test_sets_are_balanced_drawn_by_record_and_seeded(world):
    members, non_members = draw_balanced_sets(world.parts(), seed=0)
    assert len(members) == len(non_members) == 40
    assert set(members.record_ids) == set(world.request.record_ids)
    assert set(non_members.record_ids) <= set(world.split.non_members)
    assert set(draw_balanced_sets(world.parts(), seed=1)[1].record_ids) != set(non_members.record_ids)
    assert set(draw_balanced_sets(world.parts(), seed=0)[1].record_ids) == set(non_members.record_ids)


def test_a_large_forget_set_is_cut_to_the_pool(make_world):
    members, non_members = draw_balanced_sets(make_world(forget=120, retain=200, non_members=50).parts(), seed=0)
    assert len(members) == len(non_members) == 50


def test_class_wise_compares_within_the_class(world, class_request):
    parts = world.parts(class_request)
    members, non_members = draw_balanced_sets(parts, seed=0)
    assert set(members.labels) == set(non_members.labels) == {1}
    auc = measure(SCORES, parts=parts)["AUC"]
    assert "forgotten class 'b'" in auc.definition


def test_members_are_found(world):
    """Training records of the world have larger true logits: the attack finds them, until the difference is removed."""
    parts = world.parts()
    auc, tpr = measure(SCORES, parts=parts).values()
    members, non_members = draw_balanced_sets(parts, 0)
    assert auc.value == pytest.approx(roc_auc_score(*labelled(members.confidence, non_members.confidence)))
    assert auc.interval.low > 0.5
    assert auc.interval.low < auc.value < auc.interval.high
    assert tpr.unit == "%"
    rows = world.records.rows(world.request.record_ids)
    world.table[rows, world.records.labels[rows]] -= np.float32(1.0)
    after = measure(SCORES, parts=world.parts())["AUC"]
    assert after.interval.low < 0.5 < after.interval.high


def test_an_empty_pool_gives_no_score(make_world):
    assert measure(SCORES, parts=make_world(non_members=0).parts()) == {}
    with pytest.raises(DataError, match="0 non-members"):
        separation(np.ones(3), np.empty(0))


@pytest.mark.parametrize("count", [1, 2, 5, 40])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_perfect_separation_is_not_certain(count: int, sign: float) -> None:
    """The interval is that of Clopper and Pearson for as many pairs, which no resample can give."""
    high, low = 2.0 + np.arange(count), np.linspace(0.0, 1.0, count)
    members, others = (high, low) if sign > 0 else (low, high)
    found = separation(members, others)
    k = count if sign > 0 else 0
    for value, interval in ((found.auc, found.auc_interval), (found.tpr, found.tpr_interval)):
        assert interval is not None
        exact = scipy.stats.binomtest(k, count).proportion_ci(method="exact")
        assert value == k / count
        assert (interval.low, interval.high) == pytest.approx((exact.low, exact.high))


def test_ties_alone_have_an_interval_around_one_half() -> None:
    found = separation(np.ones(8), np.ones(8))
    assert found.auc == 0.5
    assert found.auc_interval is not None
    assert found.auc_interval.low == pytest.approx(0.5 * 0.025 ** (1 / 8))
    assert found.auc_interval.high == pytest.approx(1 - 0.5 * 0.025 ** (1 / 8))
    for few in (1, 3):  # one record of each says nearly nothing
        one = separation(np.full(few, 0.5), np.full(few, 0.5)).auc_interval
        assert one is not None
        assert one.high - one.low > 0.5


def test_the_interval_of_a_perfect_separation_covers_the_truth() -> None:
    """P(member > non-member) is 0.8; 4 of each are often perfectly separated, and the interval has to cover 0.8."""
    rng, hits, seen = np.random.default_rng(3), 0, 0
    shift = 2**0.5 * scipy.stats.norm.ppf(0.8)
    for seed in range(400):
        found = separation(rng.normal(shift, 1, 4), rng.normal(0, 1, 4), resamples=50, seed=seed)
        if found.auc == 1.0:
            assert found.auc_interval is not None
            seen += 1
            hits += found.auc_interval.low <= 0.8 <= found.auc_interval.high
    assert seen > 20
    assert hits == seen


def test_the_definition_says_how_many_records_were_drawn(world, make_world):
    for score in measure(SCORES, parts=world.parts()).values():
        assert f"40 records of D_f against 40 of {len(world.split.non_members)} non-members (as many of each" in (
            score.definition
        )
    large = measure(SCORES, parts=make_world(forget=120, retain=200, non_members=50).parts())
    assert "50 of 120 records of D_f against 50 non-members (as many of each" in large["TPR at 1% FPR"].definition
    equal = measure(SCORES, parts=make_world(forget=50, retain=200, non_members=50).parts())["AUC"].definition
    assert "50 records of D_f against 50 non-members. 0.5" in equal
