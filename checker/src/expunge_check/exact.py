"""Rational numbers in numpy arrays, for networks small enough to check without any rounding."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray


def fractions(array: NDArray[Any]) -> NDArray[Any]:
    """The exact values of a float array as `Fraction` objects."""
    flat = [Fraction(float(v)) for v in np.asarray(array).ravel()]
    out = np.empty(len(flat), dtype=object)
    out[:] = flat
    return out.reshape(np.shape(array))
