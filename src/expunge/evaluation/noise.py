"""The noise floor: how far two retrained models are apart that differ only in their seed. Does not import torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from .scores.disparity import NAME as DISPARITY
from .scores.disparity import TERMS, disparity_average

T = TypeVar("T")


def distinct(runs: Sequence[T], models: Sequence[str | None]) -> list[T]:
    """The first run of each model, in order; a run whose model is None counts as a model of its own.

    Args:
        runs: anything, one a run.
        models: hash of the weights of each run.
    """
    seen: set[str] = set()
    found = []
    for run, model in zip(runs, models, strict=True):
        if model is None or model not in seen:
            found.append(run)
        if model is not None:
            seen.add(model)
    return found


def mean_distance(values: Sequence[T], distance: Callable[[T, T], float]) -> float | None:
    """The mean of `distance` over all pairs of values; None of fewer than two values."""
    pairs = [distance(a, b) for a, b in itertools.combinations(values, 2)]
    return math.fsum(pairs) / len(pairs) if pairs else None


def noise_floors(
    references: Sequence[Mapping[str, float]], models: Sequence[str | None] | None = None
) -> dict[str, float]:
    """The noise floor of each score: the mean of |a - b| over all pairs of retrained references.

    A gap is a difference of two runs, and so is the floor: both are on the same scale. (For normal values the floor is
    2 / sqrt(pi) = 1.128 standard deviations.) The floor of the disparity average is the mean, over the pairs in which
    both references have its four scores, of the disparity average between the two.

    Args:
        references: the values by score name, one mapping a run; the runs differ in their seed alone.
        models: hash of the weights of each run; runs with the same one are the same model and count once. Without
            it every run is a model.

    Returns:
        Floors by score name, in the unit of the score. A score that fewer than two models have is absent; so is the
        disparity average where fewer than two models have all four scores.

    Examples:
        >>> noise_floors([{"UA": 10.0}, {"UA": 13.0}, {"UA": 11.0}])
        {'UA': 2.0}
    """
    runs = distinct(references, models or [None] * len(references))
    floors = {}
    for name in dict.fromkeys(name for run in runs for name in run):
        floor = mean_distance([run[name] for run in runs if name in run], lambda a, b: abs(a - b))
        if floor is not None and name != DISPARITY:
            floors[name] = floor
    whole = [run for run in runs if all(term in run for term in TERMS)]
    floor = mean_distance(whole, disparity_average)
    return floors if floor is None else {**floors, DISPARITY: floor}
