"""Search for counterexamples to a certificate: points of a region where the target class is not predicted.

Four searches run in the polytope {u in box : A u + c >= 0} of the region: hit-and-run [Smith1984]_, whose points
spread over the whole region; ascent along f_j - f_k with random noise; projected gradient ascent on f_j - f_k
(projections onto the most violated face and the box); and vertices found by linear programs. A search that finds no
counterexample proves nothing. To judge a search, run it also on a patch whose shift is too small, as the tests do.

.. [Smith1984] Smith: Efficient Monte Carlo procedures for generating points uniformly distributed over bounded regions,
   Operations Research 1984.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from expunge.core.seeds import torch_generator
from expunge.core.show import repr_fields
from expunge.patches.model.patched_model import PatchedModel
from expunge.patches.network.operations import Network
from expunge.patches.network.regions import AffineForms, Box, compute_affine_forms, compute_patterns

_PULL = (1e-6, 1e-4, 1e-3)


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """Result of a search.

    Attributes:
        tried: number of tested points whose executed bits equal the pattern.
        worst: smallest executed margin f'_k - max over j != k of f'_j among them; negative: a counterexample.
        point: the point of the smallest margin, flat, or None.
    """

    tried: int
    worst: float
    point: Tensor | None

    __repr__ = repr_fields


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
    """Search the region of an input for the smallest margin of the target class.

    Args:
        network: the operation list of the base network.
        patched: the patched model; its bits and logits come from the same execution.
        x: a point of the region, shape of a record, in the box.
        target: class k.
        box: the input box.
        samples: number of points of hit-and-run, ascent and projected gradient together.
        chains: number of parallel walks.
        directions: number of vertices in random directions, besides one per class.
        seed: seeds the draws.

    Raises:
        RequestError: the affine forms of the region are too large, see `compute_affine_forms`.

    Example:
        >>> import torch
        >>> from expunge.patches import Box, PatchedModel, compute_patterns, falsify, solve, trace
        >>> model = torch.nn.Sequential(torch.nn.Identity(), torch.nn.ReLU())
        >>> network, box, point = trace(model, (2,)), Box.of((2,)), torch.tensor([[0.75, 0.25]])
        >>> bits = compute_patterns(network, point)[1]
        >>> patches, proof = solve(network, bits, torch.tensor([0]), torch.tensor([1]), box)
        >>> found = falsify(network, PatchedModel(model, network, patches), point[0], 1, box, samples=300)
        >>> found.tried > 100, found.worst >= 0.001
        (True, True)
    """
    bits = compute_patterns(network, x[None])[1][0]
    forms = compute_affine_forms(network, bits)
    tracker = _Tracker(patched, bits, target)
    tracker.execute(x.double().reshape(1, -1))
    for corner in _vertices(forms, target, box, directions, seed):
        pulls = [corner + pull * (x.double().flatten() - corner) for pull in (0.0, *_PULL)]
        tracker.execute(torch.stack(pulls))
    _walk(forms, x, target, box, tracker, samples, chains, seed)
    return SearchResult(tracker.tried, tracker.worst, tracker.point)


class _Tracker:
    """Executes points and records the smallest margin of those inside the region."""

    def __init__(self, patched: PatchedModel, bits: Tensor, target: int) -> None:
        self.patched, self.bits, self.target = patched, bits, target
        self.tried, self.worst = 0, float("inf")
        self.point: Tensor | None = None

    def execute(self, points: Tensor) -> None:
        """Execute points `B x d` in float32 and update the record."""
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
        back, ahead = _find_range(forms, walk, noise, low, high)
        fraction = torch.rand(chains, generator=generator, dtype=torch.float64)
        walk = walk + (back + fraction * (ahead - back))[:, None] * noise
        uphill = goals / goals.norm(dim=1, keepdim=True).clamp(min=1e-12) + 0.5 * noise / noise.norm(dim=1)[:, None]
        _, ahead = _find_range(forms, climb, uphill, low, high)
        better = climb + 0.95 * ahead[:, None] * uphill
        rises = ((better - climb) * goals).sum(1) >= 0
        climb = torch.where(rises[:, None], better, climb)
        slide = _project(forms, slide + upward * 0.1 / (1 + turn % 50), low, high)
        tracker.execute(torch.cat([walk, climb, slide]))


def _project(forms: AffineForms, at: Tensor, low: Tensor, high: Tensor, sweeps: int = 12) -> Tensor:
    """Move points `B x d` towards the polytope, alternately onto the most violated face and into the box."""
    norms = forms.A.norm(dim=1).clamp(min=1e-12)
    for _ in range(sweeps):
        distance = (at @ forms.A.T + forms.c) / norms
        least, face = distance.min(1)
        at = at + (1e-9 - least).clamp(min=0)[:, None] * (forms.A / norms[:, None])[face]
        at = torch.minimum(torch.maximum(at, low), high)
    return at


def _find_range(forms: AffineForms, at: Tensor, way: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return the range of steps from points `B x d` along `way` inside the polytope: smallest and largest, `B` each."""
    value = torch.cat([at @ forms.A.T + forms.c, at - low, high - at], 1).clamp(min=0)
    rate = torch.cat([way @ forms.A.T, way, -way], 1)
    factor = value / rate.abs().clamp(min=1e-300)
    ahead = torch.where(rate < 0, factor, torch.inf).min(1).values
    back = -torch.where(rate > 0, factor, torch.inf).min(1).values
    return back, ahead
