"""The library's own check of stored proofs: the same inequalities that `expunge-check` verifies on its own.

Nothing is solved here. The stored multipliers are evaluated anew in float64, all error terms are added, and what is
left of each shift is the spare room; a patch is certified where it is not negative.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from expunge.patches.model.patch_set import PatchSet
from expunge.patches.network.operations import Network
from expunge.patches.network.regions import Box, unpack
from expunge.patches.network.rounding import UNIT32, UNIT64, Rounding, claimed_error, gamma

from .dual_ascent import RowSystem
from .proof import Proof
from .solve import addition_error, evaluation_error


def spare_room(
    network: Network, patches: PatchSet, proof: Proof, box: Box, *, claim: str, epsilon: float, chunk: int = 32
) -> NDArray[np.float64]:
    """By how much the tightest inequality of each patch holds, `P`; negative: the patch is not certified.

    Args:
        network: the base network's list.
        patches: the whole set (soft gates of other patches are taken as open).
        proof: point p of the proof belongs to patch p.
        box: the inputs spoken of.
        claim: `float32` or `real`.
        epsilon: margin of the target class.
        chunk: patches handled together.
    """
    parts = []
    for start in range(0, len(patches), chunk):
        rows = np.arange(start, min(len(patches), start + chunk))
        parts.append(_spare(network, patches, rows, proof.take(rows), box, claim, epsilon))
    found = np.concatenate(parts) if parts else np.zeros(0)
    found[patches.target == patches.label] = -np.inf
    return found


def _spare(
    network: Network, patches: PatchSet, rows: NDArray[np.int64], proof: Proof, box: Box, claim: str, epsilon: float
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
        spare = -epsilon - lost - (alpha * limit + beta)
        spare = spare - 4 * UNIT64 * (epsilon + lost + (alpha * limit).abs() + beta.abs())
    else:
        shift = torch.from_numpy(patches.shift[rows].astype(np.float64))[:, None]
        own = size.gather(1, target[:, None])
        if patches.kind == "constant" and patches.gate == "soft":  # other patches' gates may act on any logit
            own = torch.maximum(own, size)
        lost = addition_error(own, shift.abs(), claim)
        if patches.kind == "minimal":
            lost = lost + addition_error(size, shift.abs(), claim)
        terms = epsilon + lost + (_others(patches, rows, claim) if patches.gate == "soft" else 0.0)
        spare = shift - terms - limit - 4 * UNIT64 * (shift.abs() + terms + limit.abs())
    spare[index, target] = torch.inf
    worst = spare.min(1).values
    found: NDArray[np.float64] = torch.where(bounded & ~worst.isnan(), worst, -torch.inf).numpy()
    return found


def _reach(patches: PatchSet, rows: NDArray[np.int64], rounding: Rounding) -> torch.Tensor:
    """How far beyond the base's numbers the patches' own arithmetic may come, `P'`."""
    most = (rounding.logit_size + rounding.logits).amax(1)
    if patches.kind == "paper":  # every patch is computed, and those with closed gates are multiplied by 0
        return 4 * most + float(np.abs(patches.beta).max(initial=0))
    if patches.gate == "soft":
        return torch.full_like(most, float(np.abs(patches.logit_shift().astype(np.float64)).sum()))
    return torch.from_numpy(np.abs(patches.shift[rows]).astype(np.float64))


def _others(patches: PatchSet, rows: NDArray[np.int64], claim: str) -> torch.Tensor:
    """What soft gates of other groups could add to f_j - f_k if they were open, `P' x K`."""
    _, first = np.unique(patches.group, return_index=True)
    change = torch.from_numpy(patches.logit_shift()[first].astype(np.float64))
    found = torch.zeros(len(rows), patches.classes, dtype=torch.float64)
    for i, p in enumerate(rows):
        others = change[torch.from_numpy(patches.group[first] != patches.group[p])]
        found[i] = (others - others[:, int(patches.target[p])][:, None]).clamp(min=0).sum(0)
    if claim == "float32":
        found = found + 2 * gamma(len(first) + 3, UNIT32) * (float(change.abs().sum()) + 1)
    return found
