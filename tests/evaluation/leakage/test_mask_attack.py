"""The topology attack: chance for groups drawn alike, near 1 for tampered masks, and its formula written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from expunge.core.errors import DataError, MaskError
from expunge.core.mask import Mask, MaskProvenance
from expunge.evaluation.leakage.mask_attack import _score_attacks, extract_mask_features, measure_topology_leakage


def mask_of(**tensors) -> Mask:
    return Mask({name: torch.as_tensor(t).bool() for name, t in tensors.items()}, MaskProvenance("random"))


def random_mask(density: float, seed: int, shape) -> Mask:
    draw = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    return mask_of(weight=draw < density)


def features(density, seeds, tamper=0.0):
    rows = []
    for seed in seeds:
        mask = random_mask(density, seed, (12, 10))
        bits = mask.kept["weight"].clone()
        if tamper:
            spot = torch.rand(bits.shape, generator=torch.Generator().manual_seed(0)) < 0.2
            push = torch.rand(bits.shape, generator=torch.Generator().manual_seed(seed + 7)) < tamper
            bits[spot & push] = True
        rows.append(extract_mask_features(mask_of(weight=bits)))
    return np.stack(rows)


def test_leakage_is_chance_for_groups_drawn_alike():
    aucs, covered = [], 0
    for repeat in range(12):
        base = 10_000 * repeat
        found = measure_topology_leakage(
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
    found = measure_topology_leakage(
        features(0.3, range(40), tamper=0.9), features(0.3, range(500, 540)), permutations=50
    )
    assert found.auc > 0.97
    assert found.auc > found.null_interval.high
    assert found.p_value == pytest.approx(1 / 51)
    assert found.models == (20, 20)
    same = np.repeat(features(0.3, [1]), 8, axis=0)  # all masks are equal: no attacker can separate them
    assert measure_topology_leakage(same, same, permutations=5).auc == 0.5


def test_initial_weights_help_an_attacker_who_knows_them():
    """Masks that follow |w0| except for a few bits: the features remove what w0 predicts, and the rest leaks."""

    def group(seeds, tampered):
        rows, blind = [], []
        for seed in seeds:
            start = torch.randn(20, 16, generator=torch.Generator().manual_seed(seed))
            bits = start.abs() > 1.0
            if tampered:
                bits[:, 0] |= torch.rand(20, generator=torch.Generator().manual_seed(seed + 3)) < 0.25
            rows.append(extract_mask_features(mask_of(w=bits), {"w": start}))
            blind.append(extract_mask_features(mask_of(w=bits)))
        return np.stack(rows), np.stack(blind)

    (known1, blind1), (known0, blind0) = group(range(60), True), group(range(900, 960), False)
    knowing = measure_topology_leakage(known1, known0, permutations=10)
    unknowing = measure_topology_leakage(blind1, blind0, permutations=10)
    assert knowing.interval.low > 0.6
    assert knowing.auc > unknowing.auc + 0.1
    with pytest.raises(MaskError, match="initial weights"):
        extract_mask_features(mask_of(w=[[1]]), {})


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(bad):
    """Without the check the AUC would be 0.5, because no comparison with NaN is true."""
    fine = np.random.default_rng(0).random((8, 5))
    damaged = fine.copy()
    damaged[3, 2] = bad
    for groups in ((damaged, fine), (fine, damaged)):
        with pytest.raises(DataError, match="NaN or infinite"):
            measure_topology_leakage(*groups)


def test_leakage_needs_enough_models():
    with pytest.raises(DataError, match="at least 4"):
        measure_topology_leakage(np.zeros((3, 2)), np.zeros((9, 2)))
    with pytest.raises(DataError, match="two architectures"):
        measure_topology_leakage(np.zeros((8, 2)), np.zeros((8, 3)))


def test_attacks_by_matrix_products_equal_discriminants_fitted_one_by_one():
    """Also with a constant feature and with equal models."""
    rng = np.random.default_rng(3)
    features = (rng.random((12, 5000)) < rng.random(5000)).astype(np.float64)  # more than a block
    features[:, 7] = 1.0
    features[11] = features[10]
    truths = np.stack([rng.permutation(np.arange(12) < 5) for _ in range(6)])
    fits = np.stack([rng.permutation(np.arange(12) < 6) | (np.arange(12) == 0) for _ in range(6)])
    truths[:, 0], fits[:, 1], truths[:, 1] = True, True, False  # both groups occur
    found = _score_attacks(features, fits, truths)
    for fit, truth, scores in zip(fits, truths, found, strict=True):
        one, none = features[fit & truth], features[fit & ~truth]
        pooled = (one.var(0) * len(one) + none.var(0) * len(none)) / fit.sum()
        weights = (one.mean(0) - none.mean(0)) / (pooled + pooled.mean() + 1e-12)
        direct = features @ weights
        np.testing.assert_allclose(scores - scores.mean(), direct - direct.mean(), rtol=1e-7, atol=1e-7)
        assert scores[10] == scores[11]


def test_features_that_all_models_share_change_nothing():
    """They would lower the mean variance, to which the variances are shrunk."""
    rng = np.random.default_rng(5)
    chance = np.where(np.arange(40) < 30, 0.5, 0.03)  # many noisy features and a few rare ones
    with_forget, without = (rng.random((12, 40)) < chance).astype(float), (rng.random((12, 40)) < chance).astype(float)
    with_forget[:, 35:] = rng.random((12, 5)) < 0.3
    shared = np.ones((12, 400))
    alone = measure_topology_leakage(with_forget, without, permutations=30)
    joined = measure_topology_leakage(np.hstack([with_forget, shared]), np.hstack([without, shared]), permutations=30)
    assert alone == joined
