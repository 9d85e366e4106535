"""The bootstrap interval of the normalised overlap against all resamples, enumerated."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from expunge.core.mask import Mask, MaskProvenance
from expunge.evaluation import normalised_overlap
from expunge.evaluation.topology import random_layer_iou

UNPRUNED = [0.50, 0.55, 0.47, 0.58, 0.52]
ORIGINAL = [0.40, 0.41, 0.42, 0.40, 0.39]
RERUN = [0.60, 0.65, 0.61, 0.58, 0.63]


@pytest.mark.parametrize("level", [0.5, 0.8, 0.95])
def test_the_interval_is_that_of_all_resamples(level: float) -> None:
    """Five runs have 5^5 resamples, each as likely as the others."""
    over, under = np.subtract(UNPRUNED, ORIGINAL), np.subtract(RERUN, ORIGINAL)
    rows = np.array(list(itertools.product(range(5), repeat=5)))
    ratios = over[rows].mean(1) / under[rows].mean(1)
    found = normalised_overlap(UNPRUNED, ORIGINAL, RERUN, level=level, resamples=40_000).ratio_interval
    assert found is not None
    assert found.level == level
    for end, place in ((found.low, (1 - level) / 2), (found.high, (1 + level) / 2)):
        assert np.quantile(ratios, place - 0.01) - 1e-12 <= end <= np.quantile(ratios, place + 0.01) + 1e-12


def test_the_interval_contains_the_ratio_and_widens_with_the_level() -> None:
    made = [normalised_overlap(UNPRUNED, ORIGINAL, RERUN, level=level) for level in (0.2, 0.5, 0.9, 0.99)]
    for narrow, wide in itertools.pairwise(made):
        assert wide.ratio_interval is not None
        assert narrow.ratio_interval is not None
        assert wide.ratio_interval.low <= narrow.ratio_interval.low <= narrow.ratio
        assert narrow.ratio <= narrow.ratio_interval.high <= wide.ratio_interval.high


def test_the_expected_overlap_of_random_masks_weighs_layers_by_their_size() -> None:
    """sum n p q / sum n (p + q - p q); masks that keep nothing are equal."""

    def mask(*fractions: tuple[int, int]) -> Mask:
        kept = {f"{i}.weight": torch.arange(n) < count for i, (n, count) in enumerate(fractions)}
        return Mask(kept, MaskProvenance("random"))

    a, b = mask((100, 50), (20, 5)), mask((100, 20), (20, 10))
    expected = (100 * 0.5 * 0.2 + 20 * 0.25 * 0.5) / (100 * (0.7 - 0.1) + 20 * (0.75 - 0.125))
    assert random_layer_iou(a, b) == pytest.approx(expected)
    assert random_layer_iou(mask((4, 0)), mask((4, 0))) == 1
