"""Rational numbers in numpy arrays, for checks of small networks without rounding, and their conversion to floats."""

from __future__ import annotations

import math
import sys
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray


def to_fractions(array: NDArray[Any]) -> NDArray[Any]:
    """Return the exact values of a float array as `Fraction` objects."""
    return _to_array([Fraction(float(v)) for v in np.asarray(array).ravel()], np.shape(array))


def require_rational(array: NDArray[Any]) -> NDArray[Any]:
    """Return the array unchanged if all its entries are `Fraction` objects or integers.

    Raises:
        TypeError: an entry is a float, so an earlier step was rounded.
    """
    for value in np.asarray(array, dtype=object).ravel():
        if not isinstance(value, (Fraction, int)):
            raise TypeError(f"{value!r} is of type {type(value).__name__}, among exact numbers")
    return array


def round_down(value: Fraction | int) -> float:
    """Return the largest float64 that is not above the number; it is negative exactly if the number is."""
    near = _nearest(value)
    if math.isinf(near):
        return near
    return math.nextafter(near, -math.inf) if Fraction(near) > value else near


def round_up(value: Fraction | int) -> float:
    """Return the smallest float64 that is not below the number, or infinity."""
    return -round_down(-value)


def _nearest(value: Fraction | int) -> float:
    try:
        return float(value)
    except OverflowError:
        return sys.float_info.max if value > 0 else -math.inf


def _to_array(values: list[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    out = np.empty(len(values), dtype=object)
    out[:] = values
    return out.reshape(shape)
