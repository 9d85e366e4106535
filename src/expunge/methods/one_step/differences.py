"""The change of the summed gradient that a request makes: what both updates of Warnecke et al. start from."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from expunge.core.errors import MethodError
from expunge.core.trained import Trained
from expunge.methods.task import Task
from expunge.training.curvature import Vector, combine, gradient, parameters_of, project
from expunge.training.loop import Objective, cross_entropy
from expunge.training.recipes import get_recipe


def choose_names(task: Task, last_tensors: int) -> tuple[str, ...]:
    """Names of the trained parameters that may change: the last ones in the order of the network; 0: all."""
    names = tuple(parameters_of(task.model))
    return names[-last_tensors:] if last_tensors else names


def find_decay(trained: Trained, weight_decay: float | None, name: str) -> float:
    """The weight decay of the training objective: as given, or as the recipe of the original records.

    Args:
        trained: the original.
        weight_decay: as given, or None.
        name: of the method, for the error.

    Raises:
        MethodError: it is not given, and no recipe is recorded, or the recorded decay is not that of the objective.
    """
    if weight_decay is not None:
        return weight_decay
    recipe = trained.provenance.recipe
    if "weight_decay" not in recipe:
        raise MethodError(
            "the recipe of the original is not recorded, so its weight decay is unknown",
            where=f"{name}.weight_decay",
            hint="give it: weight_decay=0.0005",
        )
    if not get_recipe(recipe).decays_objective:
        raise MethodError(
            "the weight decay of the recipe is not that of the training objective: it is decoupled from the gradient "
            "(adamw), or some parameters have none",
            where=f"{name}.weight_decay",
            hint="give it: weight_decay=0",
        )
    return float(recipe["weight_decay"])


def sum_gradient_change(
    task: Task, names: Sequence[str], decay: float, batch_size: int, *, objective: Objective = cross_entropy
) -> Vector:
    """Return sum_{z' in Z'} grad l(z') - sum_{z in Z} grad l(z) at the original weights, on the kept weights.

    Z are the records of the request with their old values, Z' with their new ones; Z' is empty unless the request is a
    correction. l(z) = CE(z) + decay / 2 |theta|^2, so that the training objective is the mean of l. Evaluation mode.
    """
    rows = task.forget_rows
    old = gradient(task.model, task.read(rows, batch_size, records=task.old_records), objective=objective, names=names)
    total = {name: -len(rows) * part for name, part in old.items()}
    if task.request.correction is not None:
        new = gradient(task.model, task.read(rows, batch_size), objective=objective, names=names)
        total = combine(total, float(len(rows)), new)
    elif decay:  # the regulariser of the removed records; that of corrected ones cancels
        weights = {n: w.detach() for n, w in parameters_of(task.model, names).items()}
        total = combine(total, -decay * len(rows), weights)
    return project(total, task.mask)


@torch.no_grad()
def add_to_weights(task: Task, names: Sequence[str], step: Vector, scale: float) -> None:
    """Add `scale * step` to the weights.

    Raises:
        MethodError: the step, or a weight after it, is not finite; the weights are not changed.
    """
    for name, part in step.items():
        if not bool(torch.isfinite(part).all()):
            raise MethodError(
                "the step is not finite", where=f"{task.name}: {name}", hint="use a larger damping, or fewer steps"
            )
    after: dict[str, torch.Tensor] = {}
    for name, weight in parameters_of(task.model, names).items():
        if abs(scale) <= torch.finfo(weight.dtype).max:  # torch raises an error of its own for a larger one
            after[name] = torch.add(weight, step[name].to(weight.dtype), alpha=scale)
        if name not in after or not bool(torch.isfinite(after[name]).all()):
            hint = "the factor of the step is too large"
            raise MethodError("a weight after the step is not finite", where=f"{task.name}: {name}", hint=hint)
    for name, weight in parameters_of(task.model, names).items():
        weight.copy_(after[name])
