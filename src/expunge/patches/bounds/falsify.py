"""Attempts to break a certificate: points of a region where the patched network answers otherwise.

Four searches in the region's polytope {u in box : A u + c >= 0}: hit-and-run [Smith1984]_ (its points spread over
the whole region), ascent along f_j - f_k with random detours, projected gradient ascent on f_j - f_k (projections onto
the most violated face and the box), and vertices found by linear programs. A search finds
counterexamples or it does not; it proves nothing. It is only worth something beside a broken patch that it breaks.

.. [Smith1984] Smith: Efficient Monte Carlo procedures for generating points uniformly distributed over bounded regions,
   Operations Research 1984.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from expunge.core.seeds import torch_generator
from expunge.patches.model.patched_model import PatchedModel
from expunge.patches.network.operations import Network
from expunge.patches.network.regions import AffineForms, Box, compute_affine_forms, compute_patterns

_PULL = (1e-6, 1e-4, 1e-3)


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """What a search saw.

    Attributes:
        tried: points whose executed bits equal the pattern.
        worst: smallest executed f'_k - max over j of f'_j among them.
        point: where that was, flat, or None.
    """

    tried: int
    worst: float
    point: Tensor | None


def falsify(
    network: Network,
    patched: PatchedModel,
    x: Tensor,
    target: int,
    box: Box,
    *,
    samples: int = 10_000,
    chains: int = 64,
    directions: int = 4,
    seed: int = 0,
) -> SearchResult:
    """Look for the smallest margin of class `target` over the region of the input `x`.

    Args:
        network: the base network.
        patched: the patched model; bits and logits are read from the same execution.
        x: a point of the region, shape of a record, in the box.
        target: class k.
        box: the input box.
        samples: points of hit-and-run, of ascent and of projected gradient, together.
        chains: walks run side by side.
        directions: further vertices, in random directions (beside one for every class).
        seed: of the draws.
    """
    bits = compute_patterns(network, x[None])[1][0]
    forms = compute_affine_forms(network, bits)
    tracker = _Tracker(patched, bits, target)
    tracker.see(x.double().reshape(1, -1))
    for corner in _vertices(forms, target, box, directions, seed):
        pulls = [corner + pull * (x.double().flatten() - corner) for pull in (0.0, *_PULL)]
        tracker.see(torch.stack(pulls))
    _walk(forms, x, target, box, tracker, samples, chains, seed)
    return SearchResult(tracker.tried, tracker.worst, tracker.point)


class _Tracker:
    """Executes points, keeps those of the region, remembers the worst."""

    def __init__(self, patched: PatchedModel, bits: Tensor, target: int) -> None:
        self.patched, self.bits, self.target = patched, bits, target
        self.tried, self.worst = 0, float("inf")
        self.point: Tensor | None = None

    def see(self, points: Tensor) -> None:
        """Execute points `B x d` in float32."""
        x = points.float().reshape(-1, *self.patched.network.input_shape)
        logits, bits = self.patched.observe(x)
        here = (bits == self.bits).all(1)
        if not bool(here.any()):
            return
        x, logits = x[here], logits[here].double()
        own = logits[:, self.target].clone()
        logits[:, self.target] = -torch.inf
        margin = own - logits.max(1).values
        self.tried += len(x)
        if float(margin.min()) < self.worst:
            self.worst = float(margin.min())
            self.point = x[margin.argmin()].flatten()


def _vertices(forms: AffineForms, target: int, box: Box, directions: int, seed: int) -> list[Tensor]:
    from scipy.optimize import linprog

    limits = np.stack([box.low.flatten().numpy(), box.high.flatten().numpy()], axis=1)
    rows = [forms.F[j] - forms.F[target] for j in range(len(forms.F)) if j != target]
    rows += list(torch.randn(directions, forms.F.shape[1], generator=torch_generator(seed, "vertices")).double())
    found = []
    for row in rows:
        answer = linprog(-row.numpy(), A_ub=-forms.A.numpy(), b_ub=forms.c.numpy(), bounds=limits, method="highs")
        if answer.status == 0:
            found.append(torch.from_numpy(answer.x))
    return found


def _walk(
    forms: AffineForms, x: Tensor, target: int, box: Box, tracker: _Tracker, samples: int, chains: int, seed: int
) -> None:
    low, high = box.low.flatten(), box.high.flatten()
    generator = torch_generator(seed, "hit and run")
    walk = x.double().flatten().repeat(chains, 1)
    climb, slide = walk.clone(), walk.clone()
    goals = (forms.F - forms.F[target])[torch.arange(chains) % len(forms.F)]
    upward = goals / goals.norm(dim=1, keepdim=True).clamp(min=1e-12) * float((high - low).norm())
    for turn in range(max(1, samples // (3 * chains))):
        noise = torch.randn(chains, walk.shape[1], generator=generator, dtype=torch.float64)
        back, ahead = _reach(forms, walk, noise, low, high)
        share = torch.rand(chains, generator=generator, dtype=torch.float64)
        walk = walk + (back + share * (ahead - back))[:, None] * noise
        uphill = goals / goals.norm(dim=1, keepdim=True).clamp(min=1e-12) + 0.5 * noise / noise.norm(dim=1)[:, None]
        _, ahead = _reach(forms, climb, uphill, low, high)
        better = climb + 0.95 * ahead[:, None] * uphill
        rises = ((better - climb) * goals).sum(1) >= 0
        climb = torch.where(rises[:, None], better, climb)
        slide = _projected(forms, slide + upward * 0.1 / (1 + turn % 50), low, high)
        tracker.see(torch.cat([walk, climb, slide]))


def _projected(forms: AffineForms, at: Tensor, low: Tensor, high: Tensor, sweeps: int = 12) -> Tensor:
    """Points `B x d` moved towards the polytope: by turns onto the most violated face and into the box."""
    norms = forms.A.norm(dim=1).clamp(min=1e-12)
    for _ in range(sweeps):
        distance = (at @ forms.A.T + forms.c) / norms
        least, face = distance.min(1)
        at = at + (1e-9 - least).clamp(min=0)[:, None] * (forms.A / norms[:, None])[face]
        at = torch.minimum(torch.maximum(at, low), high)
    return at


def _reach(forms: AffineForms, at: Tensor, way: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """How far one can go from points `B x d` of the polytope along `way`: smallest and largest factor, `B` each."""
    value = torch.cat([at @ forms.A.T + forms.c, at - low, high - at], 1).clamp(min=0)
    rate = torch.cat([way @ forms.A.T, way, -way], 1)
    factor = value / rate.abs().clamp(min=1e-300)
    ahead = torch.where(rate < 0, factor, torch.inf).min(1).values
    back = -torch.where(rate > 0, factor, torch.inf).min(1).values
    return back, ahead
