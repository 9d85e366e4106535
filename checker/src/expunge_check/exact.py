"""Rational numbers in numpy arrays, for networks small enough to check without rounding, and their way to floats."""

from __future__ import annotations

import math
import sys
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray


def fractions(array: NDArray[Any]) -> NDArray[Any]:
    """The exact values of a float array as `Fraction` objects."""
    return _filled([Fraction(float(v)) for v in np.asarray(array).ravel()], np.shape(array))


def rational(array: NDArray[Any]) -> NDArray[Any]:
    """The array itself, all of it made of `Fraction` objects and integers.

    Raises:
        TypeError: a float is among them, so something was rounded on the way.
    """
    for value in np.asarray(array, dtype=object).ravel():
        if not isinstance(value, (Fraction, int)):
            raise TypeError(f"{value!r} is a {type(value).__name__} among exact numbers")
    return array


def below(value: Fraction | int) -> float:
    """The largest float64 that is not above the number: it is negative exactly where the number is."""
    near = _near(value)
    if math.isinf(near):
        return near
    return math.nextafter(near, -math.inf) if Fraction(near) > value else near


def above(value: Fraction | int) -> float:
    """The smallest float64 that is not below the number; infinity where there is none."""
    return -below(-value)


def _near(value: Fraction | int) -> float:
    try:
        return float(value)
    except OverflowError:
        return sys.float_info.max if value > 0 else -math.inf


def _filled(values: list[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    out = np.empty(len(values), dtype=object)
    out[:] = values
    return out.reshape(shape)
