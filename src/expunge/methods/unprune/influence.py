"""How pruning scores would have moved without D_f: influence functions at the weights that were scored.

Removing D_f (N_f of N records) turns the training loss L_D into L_r. Both are taken at the dense weights theta that the
scores were read from, with g_f and g_r the mean gradients on D_f and D_r:

    v = grad L_D - grad L_r = (N_f / N) (g_f - g_r),     theta' = theta + (C + lambda I)^{-1} v.

C is the Gauss-Newton matrix (or the Hessian) of L_r. The residual gradient of an original that stopped short of its
optimum drops out of v. The damping is not free: training for the time T = sum_t eta_t / (1 - mu) moves the weights by
(1 - exp(-T h)) / h along an eigenvector of curvature h, and lambda = 1 / T + decay has the same limits, T for h T << 1
and 1 / h for h T >> 1. So the estimate interpolates between one long gradient step and Newton's, as the training time
allows. What is unproved: that the network stays near theta, and that its curvature there is that of the way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import nn

from expunge.core.trained import clone_model
from expunge.training import curvature
from expunge.training.curvature import Batch, Curvature, Vector, conjugate_gradient, gradient
from expunge.training.recipes import Recipe


def training_time(recipe: Recipe, records: int) -> float:
    """T = sum over steps of the learning rate, over 1 - momentum: how far a constant gradient would have carried."""
    steps = -(-records // recipe.batch_size)
    rates = (recipe.rate(epoch + step / steps) for epoch in range(recipe.epochs) for step in range(steps))
    return sum(rates) / (1 - recipe.momentum)


@dataclasses.dataclass(frozen=True, eq=False)
class Corrected:
    """The estimate: the network with theta', the change, its cost in records and the solver's residual."""

    model: nn.Module
    change: Vector
    trained_records: int
    residual: float


def without_forget(
    model: nn.Module,
    forget: Sequence[Batch],
    retain: Sequence[Batch],
    *,
    removed: float,
    damping: float,
    kind: str = "gauss-newton",
    steps: int = 10,
) -> Corrected:
    """Estimate the weights that training without D_f would have reached.

    Args:
        model: with the weights that were scored; not modified.
        forget: batches of D_f.
        retain: batches of D_r, or of a sample of it.
        removed: N_f / N.
        damping: lambda.
        kind: `gauss-newton`, `hessian`, or `none` for one long gradient step, theta' = theta + v / lambda.
        steps: products with the curvature at most; each reads `retain` about twice.
    """
    twin = clone_model(model).eval()
    ours, others = gradient(twin, forget), gradient(twin, retain)
    v = {name: removed * (tensor - others[name]) for name, tensor in ours.items()}
    kept, gone = sum(len(x) for x, _ in retain), sum(len(x) for x, _ in forget)
    if kind == "none":
        change, residual, products = {name: tensor / damping for name, tensor in v.items()}, 0.0, 0
    else:
        solved = conjugate_gradient(Curvature(twin, lambda: retain, kind=kind, damping=damping), v, steps=steps)
        change, residual, products = solved.x, solved.residual, solved.products
    parameters = curvature.parameters_of(twin)
    with torch.no_grad():
        for name, tensor in change.items():
            parameters[name].add_(tensor)
    return Corrected(twin, change, kept + gone + 2 * products * kept, residual)
