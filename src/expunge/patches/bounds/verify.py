"""Verification of stored proofs by the library: the same inequalities as in the independent checker `expunge-check`.

Nothing is solved here. The stored multipliers are evaluated from scratch in float64 and all error terms are added. The
difference between a shift and this sum is the spare of the patch; a patch is certified if its spare is not negative.
Every term is a bound that is rounded up, and the rounding error of their float64 sum is subtracted, so no rounding
error can certify a patch.
"""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray

from expunge.core.errors import ConfigError
from expunge.patches.model.patch_set import PatchSet
from expunge.patches.network.operations import Network
from expunge.patches.network.regions import Box, unpack
from expunge.patches.network.rounding import TINY64, UNIT64, RoundingBounds, bound_claimed_error

from .dual_ascent import RowSystem
from .proof import Proof
from .solve import CLAIMS, addition_error, evaluation_error


def verify_patches(
    network: Network, patches: PatchSet, proof: Proof, box: Box, *, claim: str, epsilon: float, chunk: int = 32
) -> NDArray[np.float64]:
    """Verify the stored proofs and return the spare of each patch, `P` float64.

    The spare is the amount by which the tightest inequality of a patch holds. Negative: the patch is not certified. It
    is -inf if the base network predicts the label of the patch nowhere in the region, because then the patch forgets
    nothing.

    Args:
        network: the operation list of the base network.
        patches: the whole set; soft gates of other patches are assumed to be open where that does harm.
        proof: proofs in the order of the patches.
        box: the input box.
        claim: `float32` or `real`.
        epsilon: margin of the target class.
        chunk: patches processed together.

    Raises:
        ConfigError: a statement or an array is of no certificate that `expunge-check` would read: an unknown claim, a
            negative epsilon, another number of proofs than patches, a pattern twice, groups that differ.

    Example:
        >>> import torch
        >>> from expunge.patches import Box, compute_patterns, solve, trace, verify_patches
        >>> network, box = trace(torch.nn.Sequential(torch.nn.Identity(), torch.nn.ReLU()), (2,)), Box.of((2,))
        >>> bits = compute_patterns(network, torch.tensor([[0.75, 0.25]]))[1]
        >>> patches, proof = solve(network, bits, torch.tensor([0]), torch.tensor([1]), box)
        >>> verify_patches(network, patches, proof, box, claim="float32", epsilon=1e-3) >= 0
        array([ True])
        >>> verify_patches(network, patches, proof, box, claim="float32", epsilon=0.1) >= 0
        array([False])
    """
    _require_sound(network, patches, proof, box, claim, epsilon)
    parts, interference = [], _Interference.of(patches, claim)
    for start in range(0, len(patches), chunk):
        rows = np.arange(start, min(len(patches), start + chunk))
        parts.append(_compute_spare(network, patches, rows, proof.take(rows), box, claim, epsilon, interference))
    found = np.concatenate(parts) if parts else np.zeros(0)
    found[patches.target == patches.label] = -np.inf
    return found


def _require_sound(network: Network, patches: PatchSet, proof: Proof, box: Box, claim: str, epsilon: float) -> None:
    """Raise ConfigError for what `expunge-check` refuses to read."""
    if claim not in CLAIMS:
        raise ConfigError(f"unknown claim {claim!r}", hint=f"known: {', '.join(CLAIMS)}")
    if not 0 <= epsilon < math.inf:
        raise ConfigError(f"epsilon is a number >= 0, not {epsilon}", where="epsilon")
    if (patches.atoms, patches.classes) != (network.atoms, network.classes):
        raise ConfigError("the patches are for a network of another size", where="patches")
    if proof.count.shape != (len(patches), network.classes):
        raise ConfigError("there is not one proof per patch and class", where="proof")
    if not tuple(box.low.shape) == tuple(box.high.shape) == network.input_shape:
        raise ConfigError("the box has not the shape of a record", where="box")
    patches.require_consistent()


def _compute_spare(
    network: Network,
    patches: PatchSet,
    rows: NDArray[np.int64],
    proof: Proof,
    box: Box,
    claim: str,
    epsilon: float,
    interference: _Interference,
) -> NDArray[np.float64]:
    bits = unpack(patches.pattern[rows], network.atoms)
    target = torch.from_numpy(patches.target[rows].astype(np.int64))
    rounding = bound_claimed_error(network, bits, box.low, box.high, claim)
    bounded = rounding.holds(_bound_patch_arithmetic(patches, rows, rounding), claim)
    multipliers, index = proof.dense(network.atoms), torch.arange(len(rows))
    system = RowSystem(network, bits, target, box, rounding.margins, torch.float64)
    limit = system.evaluate(index, multipliers) + evaluation_error(network, multipliers, target, rounding)
    limit = limit + rounding.logits + rounding.logits.gather(1, target[:, None])
    size = rounding.logit_size + rounding.logits
    if patches.correction == "li2025":
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
        if patches.correction == "constant" and patches.gate == "soft":  # gates of other patches may act on any logit
            own = torch.maximum(own, size)
        lost = addition_error(own, shift.abs(), claim)
        if patches.correction == "minimal":
            lost = lost + addition_error(size, shift.abs(), claim)
        terms = epsilon + lost + (interference.bound(patches, rows) if patches.gate == "soft" else 0.0)
        spare = shift - terms - limit
        size = shift.abs() + terms + limit.abs()
    spare = spare - 8 * UNIT64 * size - TINY64
    spare[index, target] = torch.inf
    worst = spare.min(1).values
    label = torch.from_numpy(patches.label[rows].astype(np.int64))
    is_proved = bounded & ~worst.isnan() & ~(limit[index, label] < 0)
    found: NDArray[np.float64] = torch.where(is_proved, worst, -torch.inf).numpy()
    return found


def _bound_patch_arithmetic(patches: PatchSet, rows: NDArray[np.int64], rounding: RoundingBounds) -> torch.Tensor:
    """Return how much the arithmetic of the patches may exceed the numbers of the base network, `P'`."""
    most = (rounding.logit_size + rounding.logits).amax(1)
    if patches.correction == "li2025":  # every patch is computed; those with closed gates are multiplied by 0
        return 4 * most + float(np.abs(patches.beta).max(initial=0))
    if patches.gate == "soft":
        return torch.full_like(most, float(np.abs(patches.compute_logit_shift().astype(np.float64)).sum()))
    return torch.from_numpy(np.abs(patches.shift[rows]).astype(np.float64))


@dataclasses.dataclass(frozen=True)
class _Interference:
    """How much open soft gates of other groups could add to f_j - f_k.

    A shift s towards class t raises f_t - f_j by s for every other j, whether the patch is constant or minimal. So
    f_j - f_k grows by the positive shifts towards j and by the sizes of the negative shifts towards k. The target of
    the own group is k, so only its own negative shift is left out. Sums are exact: float32 numbers are integer
    multiples of 2^-149.

    Attributes:
        up, down: `K` each, the sums of positive shifts and of the sizes of negative shifts, one shift per group.
        lost: rounding error of adding the changes of all groups in float32.
    """

    up: list[Fraction]
    down: list[Fraction]
    lost: Fraction

    @classmethod
    def of(cls, patches: PatchSet, claim: str) -> _Interference:
        _, first = np.unique(patches.group, return_index=True)
        up, down = [0] * patches.classes, [0] * patches.classes
        for k, s in zip(patches.target[first].tolist(), patches.shift[first].tolist(), strict=True):
            (up if s > 0 else down)[k] += int(math.ldexp(abs(s), 149))
        n, unit = len(first) + 3, Fraction(1, 2**24)
        most = Fraction(sum(up) + sum(down), 2**149) * (
            Fraction(patches.classes, 2) if patches.correction == "minimal" else 1
        )
        lost = 2 * n * unit / (1 - n * unit) * (most + 1) if claim == "float32" else Fraction(0)
        whole = Fraction(1, 2**149)
        return cls([total * whole for total in up], [total * whole for total in down], lost)

    def bound(self, patches: PatchSet, rows: NDArray[np.int64]) -> torch.Tensor:
        """Return the bounds on the regions of some patches, rounded up: `P' x K`."""
        own = zip(patches.target[rows].tolist(), patches.shift[rows].tolist(), strict=True)
        others = [_round_up(self.down[k] + Fraction(min(s, 0.0)) + self.lost) for k, s in own]
        raised = torch.tensor([_round_up(total) for total in self.up], dtype=torch.float64)
        total = raised + torch.tensor(others, dtype=torch.float64)[:, None]
        return torch.where(total > 0, torch.nextafter(total, torch.full_like(total, torch.inf)), total)


def _round_up(value: Fraction) -> float:
    """Round a fraction up to float64."""
    near = float(value)
    return math.nextafter(near, math.inf) if Fraction(near) < value else near
