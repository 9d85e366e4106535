"""Gradients of single records: the rules of the layers where there are some, `torch.func` everywhere else."""

from __future__ import annotations

import collections
from collections.abc import Sequence

import torch
from torch import nn

from expunge.core.mask import Mask
from expunge.training.loop import Objective, cross_entropy

from .generic import generic_gradients
from .layer_rules import ENTRIES
from .plan import Columns, Plan, Use, differentiate, make_plan, rule_of, ruled_gradients
from .products import evaluation_mode
from .vectors import Vector, parameters_of

#: Records times columns that go through the network at once: the derivatives of all outputs are held for them.
AT_ONCE = 256


def per_record_gradients(
    model: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    objective: Objective = cross_entropy,
    mask: Mask | None = None,
    names: Sequence[str] | None = None,
) -> Vector:
    """Compute the gradient of the loss of each record, in evaluation mode.

    Cost: one pass over the records (one forward, one backward). Memory: B times the parameters, for the result.

    Args:
        model: the network; it does not change.
        x: `B x ...` inputs.
        y: `B` labels.
        objective: a mean over records, `(B x K logits, B labels) -> scalar`.
        mask: gradients of pruned weights are 0.
        names: parameters to differentiate with respect to, or None for all.

    Returns:
        For each parameter, `B x shape`. Their mean over B is the gradient of `objective`.

    Raises:
        TrainingError: the outputs of a record depend on the other records of its batch, so that it has no gradient of
            its own; or a parameter in `names` is frozen or missing.

    >>> import torch
    >>> from torch import nn
    >>> from expunge.training.curvature import per_record_gradients
    >>> model = nn.Linear(4, 3)
    >>> gradients = per_record_gradients(model, torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1]))
    >>> gradients["weight"].shape
    torch.Size([5, 3, 4])
    """
    plan = make_plan(model, x, parameters_of(model, names))
    columns, parts = loss_columns(objective), []
    with evaluation_mode(model):
        for part, labels in zip(x.split(AT_ONCE), y.split(AT_ONCE), strict=True):
            gradients = ruled_gradients(plan, part, labels, columns) if plan.ruled else {}
            if plan.rest:
                gradients |= generic_gradients(model, plan.rest_parameters, part, columns(_logits(plan, part), labels))
            parts.append(gradients)
    found = {name: torch.cat([part[name][:, 0] for part in parts]) for name in plan.parameters}
    return project_records(found, mask)


def project_records(gradients: Vector, mask: Mask | None) -> Vector:
    """Set the gradients of pruned weights to 0, for each record."""
    if mask is None:
        return gradients
    pruned = {name: ~kept for name, kept in mask.kept.items()}
    return {n: g.masked_fill(pruned[n].to(g.device), 0.0) if n in pruned else g for n, g in gradients.items()}


def loss_columns(objective: Objective) -> Columns:
    """Return the columns whose gradients are those of each record's loss: one column."""

    def columns(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        outputs = logits.detach().requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(objective(outputs, labels), outputs)
        return (slope * len(labels))[:, None]

    return columns


def sum_squares(plan: Plan, x: torch.Tensor, y: torch.Tensor, columns: Columns, count: int) -> Vector:
    """Return the sum over records and columns of the squared gradients.

    Args:
        plan: how to compute them.
        x: inputs of a batch.
        y: its labels.
        columns: the derivatives by the logits.
        count: number of columns; at most `AT_ONCE` / `count` records go through the network at once.
    """
    total = {name: torch.zeros_like(parameter) for name, parameter in plan.parameters.items()}
    step = max(1, AT_ONCE // max(count, 1))
    with evaluation_mode(plan.model):
        for part, labels in zip(x.split(step), y.split(step), strict=True):
            for name, found in _squares(plan, part, labels, columns).items():
                total[name] += found
    return total


def _squares(plan: Plan, x: torch.Tensor, y: torch.Tensor, columns: Columns) -> Vector:
    found = sum_rest_squares(plan, x, y, columns)
    return found | squares_of_uses(plan, *differentiate(plan, x, y, columns)) if plan.ruled else found


def sum_rest_squares(plan: Plan, x: torch.Tensor, y: torch.Tensor, columns: Columns) -> Vector:
    """Return the sum over records and columns of the squared gradients of the parameters without a rule."""
    found: Vector = {}
    if plan.rest:
        starts = columns(_logits(plan, x), y)
        size = sum(parameter.numel() for parameter in plan.rest_parameters.values())
        step = max(1, ENTRIES // max(size * starts.shape[1], 1))
        for first in range(0, len(x), step):
            part = slice(first, first + step)
            gradients = generic_gradients(plan.model, plan.rest_parameters, x[part], starts[part])
            for name, gradient in gradients.items():
                squared = gradient.square().sum((0, 1))
                found[name] = found[name] + squared if name in found else squared
    return found


def squares_of_uses(plan: Plan, uses: Sequence[Use], slopes: Sequence[torch.Tensor]) -> Vector:
    """Return the sum over records and columns of the squared gradients of the parameters of some calls of layers."""
    calls = collections.Counter(name for use in uses for name in plan.ruled[use.layer].values())
    found: Vector = {}
    sums: Vector = {}  # parameters with more than one use: a record's gradients are added before they are squared
    for use, d in zip(uses, slopes, strict=True):
        names, rule = plan.ruled[use.layer], rule_of(use)
        alone = all(calls[name] == 1 for name in names.values())
        entries = (rule.squares if alone else rule.gradients)(use.layer, use.a, d)
        target = found if alone else sums
        for attribute, entry in entries.items():
            name = names.get(attribute)
            if name is not None:
                target[name] = target[name] + entry if name in target else entry
    return found | {name: gradient.square().sum((0, 1)) for name, gradient in sums.items()}


def _logits(plan: Plan, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = plan.model(x)
    return logits
