"""The influence rule: an estimate of the weights that training without D_f would have reached.

Removing D_f (N_f of N records) changes the training loss from L_D to L_r. Let theta be the dense weights that the
pruning scores were computed from, and g_f, g_r the mean gradients on D_f and D_r there:

    v = grad L_D - grad L_r = (N_f / N) (g_f - g_r),     theta' = theta + (C + lambda I)^{-1} v.

C is the Gauss-Newton matrix (or the Hessian) of L_r. The gradient of L_D that remains if the original was not trained
to its optimum cancels in v. The damping lambda is not a free parameter. Training for T = sum_t eta_t / (1 - mu)
moves the weights by (1 - exp(-T h)) / h along an eigenvector of curvature h, and lambda = 1 / T + decay gives the same
limits: T for h T << 1, and 1 / h for h T >> 1. So the estimate interpolates between one long gradient step and a Newton
step, depending on the training time. Two assumptions are not proved: that training without D_f ends near theta, and
that the curvature at theta is that along the whole path.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import nn

from expunge.core.errors import MethodError
from expunge.core.trained import clone_model
from expunge.data.batches import Batch
from expunge.training import curvature
from expunge.training.curvature import Curvature, Vector, conjugate_gradient, gradient
from expunge.training.recipes import Recipe


def training_time(recipe: Recipe, records: int) -> float:
    """Return T = sum_t eta_t / (1 - mu): the length of the step that a constant gradient of norm 1 causes.

    Raises:
        MethodError: see `check_optimiser`.
    """
    check_optimiser(recipe)
    steps = -(-records // recipe.batch_size)
    rates = (recipe.rate(epoch + step / steps, steps) for epoch in range(recipe.epochs) for step in range(steps))
    return sum(rates) / (1 - recipe.momentum)


def check_optimiser(recipe: Recipe) -> None:
    """Raise MethodError unless the optimiser is SGD: no other takes steps that grow with the gradient."""
    if recipe.optimiser != "sgd":
        raise MethodError(
            f"the damping of the influence rule is the training time of SGD; the original was trained by "
            f"{recipe.optimiser}",
            where="Un-prune.rule",
            hint="use curvature=method, or rule=replay",
        )


@dataclasses.dataclass(frozen=True, eq=False)
class InfluenceEstimate:
    """The estimate of the influence rule.

    Attributes:
        model: the network with theta'.
        change: theta' - theta.
        trained_records: cost in records.
        residual: relative residual of the solver.
    """

    model: nn.Module
    change: Vector
    trained_records: int
    residual: float


def estimate_without_forget(
    model: nn.Module,
    forget: Sequence[Batch],
    retain: Sequence[Batch],
    *,
    removed: float,
    damping: float,
    matrix_type: str = "gauss-newton",
    steps: int = 10,
) -> InfluenceEstimate:
    """Estimate the weights that training without D_f would have reached.

    Args:
        model: the network with the weights that were scored; it is not modified.
        forget: batches of D_f.
        retain: batches of D_r, or of a sample of it.
        removed: N_f / N.
        damping: lambda.
        matrix_type: `gauss-newton`, `hessian`, or `none` for one long gradient step, theta' = theta + v / lambda.
        steps: maximum number of products with the curvature; each reads `retain` about twice.
    """
    copy = clone_model(model).eval()
    forget_grad, retain_grad = gradient(copy, forget), gradient(copy, retain)
    v = {name: removed * (tensor - retain_grad[name]) for name, tensor in forget_grad.items()}
    retain_records, forget_records = sum(len(x) for x, _ in retain), sum(len(x) for x, _ in forget)
    if matrix_type == "none":
        change, residual, products = {name: tensor / damping for name, tensor in v.items()}, 0.0, 0
    else:
        matrix = Curvature(copy, lambda: retain, matrix_type=matrix_type, damping=damping)
        solution = conjugate_gradient(matrix, v, steps=steps)
        change, residual, products = solution.x, solution.residual, solution.products
    parameters = curvature.parameters_of(copy)
    with torch.no_grad():
        for name, tensor in change.items():
            parameters[name].add_(tensor)
    trained_records = retain_records + forget_records + 2 * products * retain_records
    return InfluenceEstimate(copy, change, trained_records, residual)
