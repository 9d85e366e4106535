"""Topology scores against closed forms and random masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from expunge.core.errors import DataError, MaskError
from expunge.core.mask import Mask, MaskProvenance
from expunge.evaluation.topology import (
    _attacks,
    density_divergence,
    hamming,
    iou,
    layer_iou,
    mask_features,
    mean_estimate,
    normalised_overlap,
    random_iou,
    topology_leakage,
)


def mask_of(**tensors) -> Mask:
    return Mask({name: torch.as_tensor(t).bool() for name, t in tensors.items()}, MaskProvenance("random"))


def random_mask(density: float, seed: int, shape=(60, 50)) -> Mask:
    draw = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    return mask_of(weight=draw < density)


def test_iou_by_hand():
    a, b = mask_of(x=[[1, 1, 0, 0]], y=[[1, 0]]), mask_of(x=[[0, 1, 1, 0]], y=[[1, 0]])
    assert iou(a, b) == 2 / 4
    assert layer_iou(a, b) == {"x": 1 / 3, "y": 1.0}
    assert hamming(a, b) == 2 / 6
    assert iou(a, a) == 1
    assert iou(mask_of(x=[[0, 0]]), mask_of(x=[[0, 0]])) == 1


@pytest.mark.parametrize("density", [0.05, 0.2, 0.5, 0.9])
def test_random_masks_overlap_by_r_over_two_minus_r(density):
    found = [iou(random_mask(density, s), random_mask(density, s + 1000)) for s in range(30)]
    assert np.mean(found) == pytest.approx(random_iou(density), abs=4 * np.std(found) / np.sqrt(30) + 1e-3)
    assert random_iou(0.05) == pytest.approx(0.0256, abs=1e-4)


def test_density_divergence_is_jensen_shannon():
    from scipy.spatial.distance import jensenshannon

    a, b = mask_of(x=[[1, 1, 1, 0]], y=[[1, 0, 0, 0]]), mask_of(x=[[1, 0, 0, 0]], y=[[1, 1, 1, 1]])
    expected = jensenshannon([3 / 4, 1 / 4], [1 / 5, 4 / 5], base=2) ** 2
    assert density_divergence(a, b) == pytest.approx(expected)
    assert density_divergence(a, a) == 0
    assert density_divergence(mask_of(x=[[1]], y=[[0]]), mask_of(x=[[0]], y=[[1]])) == pytest.approx(1)


def test_masks_that_cannot_be_compared_are_refused():
    with pytest.raises(MaskError, match="only one"):
        iou(mask_of(x=[[1]]), mask_of(y=[[1]]))
    with pytest.raises(MaskError, match="two architectures"):
        iou(mask_of(x=[[1]]), mask_of(x=[[1, 0]]))
    with pytest.raises(MaskError, match="equal sparsity"):
        hamming(mask_of(x=[[1, 1, 1, 1]]), mask_of(x=[[1, 0, 0, 0]]))


def test_normalised_overlap_is_the_fraction_and_its_intervals_are_students():
    u, o, r = [0.50, 0.52, 0.51, 0.53], [0.40, 0.41, 0.42, 0.40], [0.60, 0.62, 0.61, 0.60]
    found = normalised_overlap(u, o, r)
    above, below = np.subtract(u, o), np.subtract(r, o)
    assert found.ratio == pytest.approx(above.mean() / below.mean())
    low, high = stats.t.interval(0.95, 3, above.mean(), stats.sem(above))
    assert (found.numerator.interval.low, found.numerator.interval.high) == pytest.approx((low, high))
    assert found.ratio_interval.low <= found.ratio <= found.ratio_interval.high
    assert mean_estimate(below).value == pytest.approx(found.denominator.value)


def test_no_ratio_where_the_denominator_may_be_zero():
    """The original is as near to the reference as the reference to itself: nothing to un-prune, no ratio."""
    found = normalised_overlap([0.9, 0.9, 0.9], [0.50, 0.55, 0.45], [0.51, 0.49, 0.50])
    assert found.ratio is None
    assert found.ratio_interval is None
    assert found.numerator.value == pytest.approx(0.4)
    # a reference that is farther from itself than the original is: the denominator is negative, and said
    nearer = normalised_overlap([0.5, 0.5], [0.8, 0.81], [0.4, 0.41])
    assert nearer.denominator.interval.high < 0
    assert nearer.ratio is None  # the original is nearer than a second reference: moving away is no progress
    with pytest.raises(DataError, match="two runs"):
        normalised_overlap([0.1], [0.1], [0.1])
    with pytest.raises(DataError, match="threes"):
        normalised_overlap([0.1, 0.2], [0.1], [0.1, 0.2])


def features(density, seeds, tamper=0.0):
    rows = []
    for seed in seeds:
        mask = random_mask(density, seed, (12, 10))
        bits = mask.kept["weight"].clone()
        if tamper:
            spot = torch.rand(bits.shape, generator=torch.Generator().manual_seed(0)) < 0.2
            push = torch.rand(bits.shape, generator=torch.Generator().manual_seed(seed + 7)) < tamper
            bits[spot & push] = True
        rows.append(mask_features(mask_of(weight=bits)))
    return np.stack(rows)


def test_leakage_is_chance_for_groups_drawn_alike():
    aucs, covered = [], 0
    for repeat in range(12):
        base = 10_000 * repeat
        found = topology_leakage(
            features(0.3, range(base, base + 40)),
            features(0.3, range(base + 500, base + 540)),
            permutations=20,
            seed=repeat,
        )
        aucs.append(found.auc)
        covered += found.interval.low <= 0.5 <= found.interval.high
    assert abs(np.mean(aucs) - 0.5) < 0.07
    assert covered >= 9


def test_leakage_is_near_one_for_tampered_masks():
    found = topology_leakage(features(0.3, range(40), tamper=0.9), features(0.3, range(500, 540)), permutations=50)
    assert found.auc > 0.97
    assert found.auc > found.null_interval.high
    assert found.p_value == pytest.approx(1 / 51)
    assert found.models == (20, 20)
    same = np.repeat(features(0.3, [1]), 8, axis=0)  # all masks the same: no attacker can tell
    assert topology_leakage(same, same, permutations=5).auc == 0.5


def test_initial_weights_help_an_attacker_who_knows_them():
    """Masks that follow |w0| but for a few bits: what w0 predicts is taken out, what is left shows."""

    def group(seeds, tampered):
        rows, blind = [], []
        for seed in seeds:
            start = torch.randn(20, 16, generator=torch.Generator().manual_seed(seed))
            bits = start.abs() > 1.0
            if tampered:
                bits[:, 0] |= torch.rand(20, generator=torch.Generator().manual_seed(seed + 3)) < 0.25
            rows.append(mask_features(mask_of(w=bits), {"w": start}))
            blind.append(mask_features(mask_of(w=bits)))
        return np.stack(rows), np.stack(blind)

    (known1, blind1), (known0, blind0) = group(range(60), True), group(range(900, 960), False)
    knowing = topology_leakage(known1, known0, permutations=10)
    unknowing = topology_leakage(blind1, blind0, permutations=10)
    assert knowing.interval.low > 0.6
    assert knowing.auc > unknowing.auc + 0.1
    with pytest.raises(MaskError, match="initial weights"):
        mask_features(mask_of(w=[[1]]), {})


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_leakage_of_features_that_are_no_numbers_is_refused(bad):
    """They would be 0.5 without complaint: no comparison with NaN is true."""
    fine = np.random.default_rng(0).random((8, 5))
    damaged = fine.copy()
    damaged[3, 2] = bad
    for sides in ((damaged, fine), (fine, damaged)):
        with pytest.raises(DataError, match="NaN or infinite"):
            topology_leakage(*sides)


def test_leakage_needs_models():
    with pytest.raises(DataError, match="at least 4"):
        topology_leakage(np.zeros((3, 2)), np.zeros((9, 2)))
    with pytest.raises(DataError, match="two architectures"):
        topology_leakage(np.zeros((8, 2)), np.zeros((8, 3)))


def test_attacks_by_products_are_discriminants_one_by_one():
    """All attacks at once score as the formula does for each alone, a constant feature and equal models included."""
    rng = np.random.default_rng(3)
    features = (rng.random((12, 5000)) < rng.random(5000)).astype(np.float64)  # more than a block
    features[:, 7] = 1.0
    features[11] = features[10]
    truths = np.stack([rng.permutation(np.arange(12) < 5) for _ in range(6)])
    fits = np.stack([rng.permutation(np.arange(12) < 6) | (np.arange(12) == 0) for _ in range(6)])
    truths[:, 0], fits[:, 1], truths[:, 1] = True, True, False  # both groups are there
    found = _attacks(features, fits, truths)
    for fit, truth, scores in zip(fits, truths, found, strict=True):
        one, none = features[fit & truth], features[fit & ~truth]
        pooled = (one.var(0) * len(one) + none.var(0) * len(none)) / fit.sum()
        weights = (one.mean(0) - none.mean(0)) / (pooled + pooled.mean() + 1e-12)
        direct = features @ weights
        np.testing.assert_allclose(scores - scores.mean(), direct - direct.mean(), rtol=1e-7, atol=1e-7)
        assert scores[10] == scores[11]
