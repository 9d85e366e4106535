"""Interference of soft gates: how much patches of other groups can add to f_j - f_k on a region, without rounding.

A patch of shift s towards class t changes f_t - f_j by s for every other class j, and no other difference, whether its
correction is constant or minimal. If every gate of another group is open where it does harm, f_j - f_k grows by at most

    (sum of the positive shifts towards j) + (sum of the sizes of negative shifts towards k, without the own group).

The sums are computed in integers (float32 numbers are integer multiples of 2^-149), so thousands of tiny shifts count
next to a large one.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge_check.errors import BadCertificate

from .rational import round_up

Array = NDArray[Any]
_BITS = 149
_UNIT32 = Fraction(1, 2**24)


class Interference:
    """Sums of shifts over the groups of a set of patches.

    Args:
        correction: of the patches; li2025 has no constant shift and is never certified with soft gates.
        target, shift, group: `P` each; patches of a group have the same target and shift.
        classes: K.
        rounded: whether the claim is about float32; then the rounding error of adding the changes is included.

    Raises:
        BadCertificate: there are too many groups for a rounding bound.
    """

    def __init__(
        self, correction: str, target: Array, shift: Array, group: Array, classes: int, *, rounded: bool
    ) -> None:
        _, first = np.unique(group, return_index=True)
        up, down = [0] * classes, [0] * classes
        for k, s in zip(target[first].tolist(), shift[first].tolist(), strict=True):
            size = int(math.ldexp(abs(s), _BITS))
            (up if s > 0 else down)[k] += size
        self.up, self.down = ([Fraction(total, 2**_BITS) for total in table] for table in (up, down))
        self.lost = Fraction(0)
        if rounded:
            n = len(first) + 3
            if n * _UNIT32 >= Fraction(1, 2):
                raise BadCertificate("there are too many groups of patches for a rounding bound")
            everything = sum([*self.up, *self.down], Fraction(0))
            if correction == "minimal":
                everything = everything * classes / 2
            self.lost = 2 * n * _UNIT32 / (1 - n * _UNIT32) * (everything + 1)

    def bound(self, target: Array, shift: Array, *, exact: bool) -> Array:
        """Return bounds `P' x K` of what is added to f_j - f_k on the regions of patches, rounded up unless `exact`."""
        other = [self.down[k] + Fraction(min(s, 0.0)) + self.lost for k, s in zip(target, shift, strict=True)]
        if exact:
            table = np.empty((len(other), len(self.up)), dtype=object)
            for row, own in enumerate(other):
                table[row] = [raised + own for raised in self.up]
            return table
        total = np.asarray([round_up(v) for v in self.up])[None] + np.asarray([round_up(v) for v in other])[:, None]
        return np.where(total > 0, np.nextafter(total, np.inf), total)
