"""The library's own check of stored proofs: the same inequalities that `expunge-check` verifies on its own.

Nothing is solved here. The stored multipliers are evaluated from scratch in float64, all error terms are added, and
what is left of each shift is the spare room; a patch is certified where it is not negative. Every term is a bound that
is rounded up, and what their float64 sum may lose is taken off, so that no rounding decides in favour of a patch.
"""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray

from expunge.patches.model.patch_set import PatchSet
from expunge.patches.network.operations import Network
from expunge.patches.network.regions import Box, unpack
from expunge.patches.network.rounding import TINY64, UNIT64, Rounding, claimed_error

from .dual_ascent import RowSystem
from .proof import Proof
from .solve import addition_error, evaluation_error


def spare_room(
    network: Network, patches: PatchSet, proof: Proof, box: Box, *, claim: str, epsilon: float, chunk: int = 32
) -> NDArray[np.float64]:
    """By how much the tightest inequality of each patch holds, `P`; negative: the patch is not certified.

    It is minus infinity where the base network answers the patch's label nowhere in the region: such a label is false,
    and the patch forgets nothing.

    Args:
        network: the base network's list.
        patches: the whole set (soft gates of other patches are taken as open).
        proof: point p of the proof belongs to patch p.
        box: the inputs spoken of.
        claim: `float32` or `real`.
        epsilon: margin of the target class.
        chunk: patches handled together.
    """
    parts, harm = [], _Harm.of(patches, claim)
    for start in range(0, len(patches), chunk):
        rows = np.arange(start, min(len(patches), start + chunk))
        parts.append(_spare(network, patches, rows, proof.take(rows), box, claim, epsilon, harm))
    found = np.concatenate(parts) if parts else np.zeros(0)
    found[patches.target == patches.label] = -np.inf
    return found


def _spare(
    network: Network,
    patches: PatchSet,
    rows: NDArray[np.int64],
    proof: Proof,
    box: Box,
    claim: str,
    epsilon: float,
    harm: _Harm,
) -> NDArray[np.float64]:
    bits = unpack(patches.pattern[rows], network.atoms)
    target = torch.from_numpy(patches.target[rows].astype(np.int64))
    rounding = claimed_error(network, bits, box.low, box.high, claim)
    bounded = rounding.bounded(_reach(patches, rows, rounding), claim)
    multipliers, index = proof.dense(network.atoms), torch.arange(len(rows))
    system = RowSystem(network, bits, target, box, rounding.margins, torch.float64)
    limit = system.evaluate(index, multipliers) + evaluation_error(network, multipliers, target, rounding)
    limit = limit + rounding.logits + rounding.logits.gather(1, target[:, None])
    size = rounding.logit_size + rounding.logits
    if patches.kind == "paper":
        if patches.gate == "soft":
            return np.full(len(rows), -np.inf)
        alpha, beta = (torch.from_numpy(a[rows].astype(np.float64)) for a in (patches.alpha, patches.beta))
        both = size + size.gather(1, target[:, None])
        lost = 8 * addition_error(both, beta.abs(), claim)
        scaled = alpha * limit
        spare = -(epsilon + lost) - (scaled + beta)
        size = epsilon + lost + scaled.abs() + beta.abs()
    else:
        shift = torch.from_numpy(patches.shift[rows].astype(np.float64))[:, None]
        own = size.gather(1, target[:, None])
        if patches.kind == "constant" and patches.gate == "soft":  # other patches' gates may act on any logit
            own = torch.maximum(own, size)
        lost = addition_error(own, shift.abs(), claim)
        if patches.kind == "minimal":
            lost = lost + addition_error(size, shift.abs(), claim)
        terms = epsilon + lost + (harm.on(patches, rows) if patches.gate == "soft" else 0.0)
        spare = shift - terms - limit
        size = shift.abs() + terms + limit.abs()
    spare = spare - 8 * UNIT64 * size - TINY64
    spare[index, target] = torch.inf
    worst = spare.min(1).values
    label = torch.from_numpy(patches.label[rows].astype(np.int64))
    proved = bounded & ~worst.isnan() & ~(limit[index, label] < 0)
    found: NDArray[np.float64] = torch.where(proved, worst, -torch.inf).numpy()
    return found


def _reach(patches: PatchSet, rows: NDArray[np.int64], rounding: Rounding) -> torch.Tensor:
    """How far beyond the base's numbers the patches' own arithmetic may come, `P'`."""
    most = (rounding.logit_size + rounding.logits).amax(1)
    if patches.kind == "paper":  # every patch is computed, and those with closed gates are multiplied by 0
        return 4 * most + float(np.abs(patches.beta).max(initial=0))
    if patches.gate == "soft":
        return torch.full_like(most, float(np.abs(patches.logit_shift().astype(np.float64)).sum()))
    return torch.from_numpy(np.abs(patches.shift[rows]).astype(np.float64))


@dataclasses.dataclass(frozen=True)
class _Harm:
    """What soft gates of other groups could add to f_j - f_k if they were open.

    A shift s towards class t raises f_t - f_j by s for every other j, whether the patch is constant or minimal. So
    f_j - f_k grows by the positive shifts towards j and by the sizes of the negative ones towards k; the own group's
    target is k, so only its negative shift is left out. Sums are exact: float32 numbers are multiples of 2^-149.

    Attributes:
        up, down: `K` each, the sums of positive shifts and of the sizes of negative ones, a shift a group.
        lost: what adding the changes of all groups may lose in float32.
    """

    up: list[Fraction]
    down: list[Fraction]
    lost: Fraction

    @classmethod
    def of(cls, patches: PatchSet, claim: str) -> _Harm:
        _, first = np.unique(patches.group, return_index=True)
        up, down = [0] * patches.classes, [0] * patches.classes
        for k, s in zip(patches.target[first].tolist(), patches.shift[first].tolist(), strict=True):
            (up if s > 0 else down)[k] += int(math.ldexp(abs(s), 149))
        n, unit = len(first) + 3, Fraction(1, 2**24)
        most = Fraction(sum(up) + sum(down), 2**149) * (
            Fraction(patches.classes, 2) if patches.kind == "minimal" else 1
        )
        lost = 2 * n * unit / (1 - n * unit) * (most + 1) if claim == "float32" else Fraction(0)
        whole = Fraction(1, 2**149)
        return cls([total * whole for total in up], [total * whole for total in down], lost)

    def on(self, patches: PatchSet, rows: NDArray[np.int64]) -> torch.Tensor:
        """The bounds on the regions of some patches, rounded up: `P' x K`."""
        own = zip(patches.target[rows].tolist(), patches.shift[rows].tolist(), strict=True)
        others = [_above(self.down[k] + Fraction(min(s, 0.0)) + self.lost) for k, s in own]
        raised = torch.tensor([_above(total) for total in self.up], dtype=torch.float64)
        total = raised + torch.tensor(others, dtype=torch.float64)[:, None]
        return torch.where(total > 0, torch.nextafter(total, torch.full_like(total, torch.inf)), total)


def _above(value: Fraction) -> float:
    """The smallest float64 that is not below a number."""
    near = float(value)
    return math.nextafter(near, math.inf) if Fraction(near) < value else near
