"""Error terms of single operations besides relative rounding: underflow, overflow, sums of the reverse pass."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .operations import Step

Array = NDArray[Any]


def count_backward_roundings(step: Step) -> int:
    """Return the number of roundings of the reverse pass of an operation, where sums run over its results."""
    if step.op == "linear":
        return int(step.tensors["weight"].shape[0]) + 2
    if step.op == "conv":
        weight = step.tensors["weight"].shape
        return int(weight[0]) // int(step.attributes["groups"]) * math.prod(weight[2:]) + 2
    if step.op == "max_pool":
        return 2 * math.prod(step.attributes["kernel"]) + 2
    return math.prod(step.attributes["kernel"]) + 2 if step.op == "average_pool" else 2


def underflow_error(step: Step, x: Array, tiny: float) -> Array | float:
    """Return how much underflow may change a result of an `absolute` step.

    Each product may lose `tiny`. In BatchNorm, which may be computed in any order, and in a division by a reciprocal,
    the loss may afterwards be multiplied by another factor of the product.

    Args:
        step: an affine operation with absolute values.
        x: sizes of the inputs, their errors included.
        tiny: absolute error of a product that underflows.
    """
    lost = step.count_roundings() * tiny
    if step.op == "batch_norm":
        return np.asarray(lost * (1 + x + step.tensors["mean"] + step.tensors["weight"] + step.tensors["inverse"]))
    return np.asarray(lost * (1 + x)) if step.op == "divide_constant" else lost


def find_peak(step: Step, x: Array, y: Array) -> Array:
    """Return the largest absolute number that may occur in the execution of an `absolute` step, in any order, `B`.

    Args:
        step: an affine operation.
        x: sizes of the inputs, their errors included.
        y: sizes of the results, their errors included, which bound every partial sum of products. A mean may be
            divided after it is summed, and BatchNorm may multiply its factors in any order.
    """
    most = max_per_record(y)
    if step.op == "batch_norm":
        whole = np.maximum(1, x + step.tensors["mean"])
        for name in ("weight", "inverse"):
            whole = whole * np.maximum(1, step.tensors[name])
        bias = step.tensors["bias"].max(initial=0) if "bias" in step.tensors else 0
        return np.asarray(np.maximum(most, max_per_record(whole) + bias + step.tensors["spread"].max(initial=0)))
    if step.op == "divide_constant":
        return np.asarray(np.maximum(most, (1 / step.tensors["value"]).max(initial=0)))
    if step.op == "average_pool":
        return most * math.prod(step.attributes["kernel"])
    return most * math.prod(step.shapes[0][axis] for axis in step.attributes["axes"]) if step.op == "mean" else most


def max_per_record(x: Array) -> Array:
    """Return the largest number of each record, `B`; NaN if the record has one."""
    return np.asarray(x.reshape(len(x), -1).max(axis=1, initial=0))
