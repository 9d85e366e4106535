"""The optimisers of one run: one, or one for each name of `Pass.momentum`."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from expunge.training.recipes import Recipe

from .steps import Pass, Steps


def make_optimisers(model: nn.Module, recipe: Recipe, steps: Steps) -> dict[str, torch.optim.Optimizer]:
    """The optimisers by the name of their momentum; the first, with the empty name, always exists."""
    names = {"": None, **{turn.momentum: None for turn in steps.passes or ()}}
    return {name: _make_optimiser(model, recipe, steps.optimiser) for name in names}


def _make_optimiser(model: nn.Module, recipe: Recipe, kind: str) -> torch.optim.Optimizer:
    if kind == "adam":
        return torch.optim.Adam(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(
        model.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.nesterov and recipe.momentum > 0,
    )


def choose_optimiser(
    optimisers: dict[str, torch.optim.Optimizer], turn: Pass | None, recipe: Recipe
) -> torch.optim.Optimizer:
    """The optimiser of a pass, with its weight decay."""
    if turn is None:
        return optimisers[""]
    chosen = optimisers[turn.momentum]
    for group in chosen.param_groups:
        group["weight_decay"] = recipe.weight_decay if turn.weight_decay is None else turn.weight_decay
    return chosen


def clear_gradients(optimisers: Iterable[torch.optim.Optimizer]) -> None:
    """A returned model carries no gradient of the last batch."""
    for optimiser in optimisers:
        optimiser.zero_grad(set_to_none=True)
