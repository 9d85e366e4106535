"""Mask overlaps against closed forms and random masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from expunge.core.errors import DataError, MaskError
from expunge.core.mask import Mask, MaskProvenance
from expunge.evaluation.topology import (
    density_divergence,
    estimate_mean,
    hamming_distance,
    iou,
    layer_iou,
    normalised_overlap,
    random_iou,
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
    assert hamming_distance(a, b) == 2 / 6
    assert iou(a, a) == 1
    assert iou(mask_of(x=[[0, 0]]), mask_of(x=[[0, 0]])) == 1


@pytest.mark.parametrize("density", [0.05, 0.2, 0.5, 0.9])
def test_random_masks_have_an_iou_of_r_over_two_minus_r(density):
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
        hamming_distance(mask_of(x=[[1, 1, 1, 1]]), mask_of(x=[[1, 0, 0, 0]]))


def test_normalised_overlap_is_the_fraction_and_its_intervals_are_students():
    u, o, r = [0.50, 0.52, 0.51, 0.53], [0.40, 0.41, 0.42, 0.40], [0.60, 0.62, 0.61, 0.60]
    found = normalised_overlap(u, o, r)
    numerator, denominator = np.subtract(u, o), np.subtract(r, o)
    assert found.ratio == pytest.approx(numerator.mean() / denominator.mean())
    low, high = stats.t.interval(0.95, 3, numerator.mean(), stats.sem(numerator))
    assert (found.numerator.interval.low, found.numerator.interval.high) == pytest.approx((low, high))
    assert found.ratio_interval.low <= found.ratio <= found.ratio_interval.high
    assert estimate_mean(denominator).value == pytest.approx(found.denominator.value)


def test_no_ratio_if_the_denominator_may_be_zero():
    """The original is as close to the reference as a rerun of the reference: nothing to un-prune, no ratio."""
    found = normalised_overlap([0.9, 0.9, 0.9], [0.50, 0.55, 0.45], [0.51, 0.49, 0.50])
    assert found.ratio is None
    assert found.ratio_interval is None
    assert found.numerator.value == pytest.approx(0.4)
    # the reference is farther from its rerun than the original is: the denominator is negative
    nearer = normalised_overlap([0.5, 0.5], [0.8, 0.81], [0.4, 0.41])
    assert nearer.denominator.interval.high < 0
    assert nearer.ratio is None  # the original is closer than a rerun: moving away is no progress
    with pytest.raises(DataError, match="two runs"):
        normalised_overlap([0.1], [0.1], [0.1])
    with pytest.raises(DataError, match="three overlaps"):
        normalised_overlap([0.1, 0.2], [0.1], [0.1, 0.2])


@pytest.mark.parametrize("values", [[], [0.5]])
def test_an_interval_needs_two_runs(values):
    with pytest.raises(DataError, match="at least two runs"):
        estimate_mean(values)
