"""The noise floor: the mean absolute difference over pairs of retrained models that differ only in their seed.

Does not import torch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from .scores.disparity import NAME as DISPARITY
from .scores.disparity import TERMS, disparity_average

T = TypeVar("T")


def drop_duplicates(runs: Sequence[T], models: Sequence[str | None]) -> list[T]:
    """Keep the first run of each model, in order.

    Args:
        runs: one item a run.
        models: hash of the weights of each run; None counts as a distinct model.
    """
    seen: set[str] = set()
    found = []
    for run, model in zip(runs, models, strict=True):
        if model is None or model not in seen:
            found.append(run)
        if model is not None:
            seen.add(model)
    return found


def mean_pairwise_distance(values: Sequence[T], distance: Callable[[T, T], float]) -> float | None:
    """The mean of `distance` over all pairs of values, or None for fewer than two values."""
    pairs = [distance(a, b) for a, b in itertools.combinations(values, 2)]
    return math.fsum(pairs) / len(pairs) if pairs else None


def noise_floors(
    references: Sequence[Mapping[str, float]], models: Sequence[str | None] | None = None
) -> dict[str, float]:
    """The noise floor of each score: the mean of |a - b| over all pairs of retrained references.

    The floor is a rough scale for gaps: both are differences of two runs, but the two runs of a gap share a seed, and
    those of the floor do not. (For normally distributed values the floor is 2 / sqrt(pi) = 1.128 standard deviations of
    one run, and 42 % of differences exceed it.) The floor of the disparity average is the
    mean disparity average between two references, over the pairs in which both have its four scores.

    Args:
        references: values by score name, one mapping a run; the runs differ only in their seed.
        models: hash of the weights of each run; runs with equal hashes are one model and count once. None: every run is
            a distinct model.

    Returns:
        Floors by score name, in the unit of the score. A score is absent if fewer than two models have it; the
        disparity average is absent if fewer than two models have all four scores.

    Examples:
        >>> from expunge.evaluation import noise_floors
        >>> noise_floors([{"UA": 10.0}, {"UA": 13.0}, {"UA": 11.0}])
        {'UA': 2.0}
    """
    runs = drop_duplicates(references, models or [None] * len(references))
    floors = {}
    for name in dict.fromkeys(name for run in runs for name in run):
        floor = mean_pairwise_distance([run[name] for run in runs if name in run], lambda a, b: abs(a - b))
        if floor is not None and name != DISPARITY:
            floors[name] = floor
    complete = [run for run in runs if all(term in run for term in TERMS)]
    floor = mean_pairwise_distance(complete, disparity_average)
    return floors if floor is None else {**floors, DISPARITY: floor}
