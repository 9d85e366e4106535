"""The bootstrap interval of the normalised overlap against all resamples, enumerated."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from expunge.evaluation import normalised_overlap

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
