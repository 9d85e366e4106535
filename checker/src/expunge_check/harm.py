"""What soft gates of other groups can add to f_j - f_k on a region, summed without any rounding.

A patch of shift s towards class t changes f_t - f_j by s for every other class j and no other difference, be its kind
constant or minimal. With every gate of another group taken as open where it does harm, f_j - f_k grows by at most

    (sum of the positive shifts towards j) + (sum of the sizes of negative shifts towards k, the own group's left out).

Sums are taken over integers (float32 numbers are multiples of 2^-149), so thousands of tiny shifts count beside a
large one.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .exact import above
from .files import BadCertificate

Array = NDArray[Any]
_BITS = 149
_UNIT32 = Fraction(1, 2**24)


class Harm:
    """Sums over the groups of a set of patches.

    Args:
        kind: of the patches; one of the kind paper has no constant shift and is never certified behind soft gates.
        target, shift, group: `P` each; patches of a group share target and shift.
        classes: K.
        rounded: whether the claim is about float32, where adding the changes up may lose something too.

    Raises:
        BadCertificate: there are too many groups for a rounding bound.
    """

    def __init__(self, kind: str, target: Array, shift: Array, group: Array, classes: int, *, rounded: bool) -> None:
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
            if kind == "minimal":
                everything = everything * classes / 2
            self.lost = 2 * n * _UNIT32 / (1 - n * _UNIT32) * (everything + 1)

    def on(self, target: Array, shift: Array, *, exact: bool) -> Array:
        """Bounds `P' x K` on what is added to f_j - f_k on the regions of some patches, rounded up unless `exact`."""
        other = [self.down[k] + Fraction(min(s, 0.0)) + self.lost for k, s in zip(target, shift, strict=True)]
        if exact:
            table = np.empty((len(other), len(self.up)), dtype=object)
            for row, own in enumerate(other):
                table[row] = [raised + own for raised in self.up]
            return table
        total = np.asarray([above(v) for v in self.up])[None] + np.asarray([above(v) for v in other])[:, None]
        return np.where(total > 0, np.nextafter(total, np.inf), total)
