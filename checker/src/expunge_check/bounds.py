"""What one step can lose or reach besides its relative roundings: underflow, overflow, sums of the reverse pass."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .operations import Step

Array = NDArray[Any]


def roundings_back(step: Step) -> int:
    """Roundings between the cotangents of results and that of one input: there the sums run over results."""
    if step.kind == "linear":
        return int(step.held["weight"].shape[0]) + 2
    if step.kind == "conv":
        weight = step.held["weight"].shape
        return int(weight[0]) // int(step.at["groups"]) * math.prod(weight[2:]) + 2
    if step.kind == "max_pool":
        return 2 * math.prod(step.at["kernel"]) + 2
    return math.prod(step.at["kernel"]) + 2 if step.kind == "average_pool" else 2


def absolute_error(step: Step, x: Array, tiny: float) -> Array | float:
    """What underflow adds to a result of an `absolute` step; `x`: sizes of the inputs, their errors included.

    Each product may lose `tiny`. In BatchNorm, which may be computed in any order, and in a division done by a
    reciprocal, what is lost may be multiplied by another factor of the product afterwards.
    """
    lost = step.roundings() * tiny
    if step.kind == "batch_norm":
        return np.asarray(lost * (1 + x + step.held["mean"] + step.held["weight"] + step.held["inverse"]))
    return np.asarray(lost * (1 + x)) if step.kind == "divide_constant" else lost


def peak(step: Step, x: Array, y: Array) -> Array:
    """The largest absolute number that executing an `absolute` step may come by, in any order: `B`.

    Args:
        step: an affine operation.
        x: sizes of the inputs, their errors included.
        y: the same of the results, which bounds every partial sum of products. A mean may be divided after it is
            summed, and BatchNorm may multiply its factors in any order.
    """
    most = largest(y)
    if step.kind == "batch_norm":
        whole = np.maximum(1, x + step.held["mean"])
        for name in ("weight", "inverse"):
            whole = whole * np.maximum(1, step.held[name])
        bias = step.held["bias"].max(initial=0) if "bias" in step.held else 0
        return np.asarray(np.maximum(most, largest(whole) + bias))
    if step.kind == "divide_constant":
        return np.asarray(np.maximum(most, (1 / step.held["value"]).max(initial=0)))
    if step.kind == "average_pool":
        return most * math.prod(step.at["kernel"])
    return most * math.prod(step.shapes[0][axis] for axis in step.at["axes"]) if step.kind == "mean" else most


def largest(x: Array) -> Array:
    """The largest number of each record, `B`; NaN where there is one."""
    return np.asarray(x.reshape(len(x), -1).max(axis=1, initial=0))
