"""Targeted adversarial examples within an L2 ball, and the inputs for which they are defined."""

from __future__ import annotations

import torch
from torch import nn

from expunge.data.records import Records
from expunge.methods.changed_inputs import explain_integers, find_discrete_features
from expunge.training.loop import cross_entropy

_REFUSED = "adversarial examples need inputs that can change by small amounts"


def explain_discrete(records: Records) -> tuple[str, str] | None:
    """Why records have no adversarial examples, and a hint; None if they have.

    A step of any size along a gradient leads from a one-hot or binary feature to values that no record can have, so the
    example says nothing of the network's decisions between records.

    Args:
        records: in memory or streamed; a stream is taken for images.
    """
    integers = explain_integers(records)
    if integers is not None:
        return integers
    reason = find_discrete_features(records)
    hint = "use a method without adversarial examples for tables with categories"
    return (f"{_REFUSED}: {reason}", hint) if reason else None


def draw_targets(labels: torch.Tensor, classes: int, generator: torch.Generator) -> torch.Tensor:
    """Draw for each label another class, uniformly."""
    shift = torch.randint(1, classes, labels.shape, generator=generator)
    return (labels.cpu() + shift) % classes


def draw_released_targets(labels: torch.Tensor, classes: int, generator: torch.Generator) -> torch.Tensor:
    """Draw as the released code of L2UL: from all classes, and `classes // 2` wherever that is the label."""
    drawn = torch.randint(0, classes, labels.shape, generator=generator)
    return torch.where(drawn == labels.cpu(), classes // 2, drawn)


def perturb_towards(
    model: nn.Module,
    x: torch.Tensor,
    targets: torch.Tensor,
    *,
    radius: float,
    step: float,
    steps: int,
    generator: torch.Generator,
    bounds: tuple[float, float] | None = None,
) -> torch.Tensor:
    """Make targeted adversarial examples by projected gradient descent in the L2 norm.

    From a random point of the ball of the given radius, x' <- x' - step * g / |g|_2, with g the gradient of the
    cross-entropy with the target, projected onto the ball around x and clipped to the bounds.

    Args:
        model: the network, in evaluation mode; its parameters get no gradient.
        x: `B x ...` inputs.
        targets: `B` classes.
        radius: of the ball.
        step: length of a step.
        steps: number of steps.
        generator: of the random starts, on the CPU.
        bounds: the least and the largest value of an input, or None.

    Returns:
        `B x ...` inputs.
    """
    start = torch.randn(x.shape, generator=generator).to(x.device)
    away = torch.rand(len(x), generator=generator).to(x.device) ** (1 / max(1, x[0].numel()))
    delta = _scale(start, radius * away)
    for _ in range(steps):
        moved = _clip(x + delta, bounds).detach().requires_grad_()
        with torch.enable_grad():
            loss = cross_entropy(model(moved), targets) * len(x)
            (slope,) = torch.autograd.grad(loss, moved)
        delta = moved.detach() - x - _scale(slope, torch.full((len(x),), step, device=x.device))
        sizes = torch.linalg.vector_norm(delta.flatten(1), dim=1)
        delta = _scale(delta, sizes.clamp_max(radius))
    return _clip(x + delta, bounds).detach()


def _clip(x: torch.Tensor, bounds: tuple[float, float] | None) -> torch.Tensor:
    return x if bounds is None else x.clamp(*bounds)


def _scale(x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Each record of x with another length; one of length 0 stays."""
    sizes = torch.linalg.vector_norm(x.flatten(1), dim=1).clamp_min(1e-30)
    return x * (lengths / sizes).reshape(-1, *[1] * (x.dim() - 1))
