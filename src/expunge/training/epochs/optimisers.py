"""The optimisers of one run: one, or one for each name of `Pass.momentum`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from expunge.core.hashing import plain_name
from expunge.training.recipes import Recipe
from expunge.training.recipes.decay_rules import find_undecayed

from .steps import Pass, Steps


def make_optimisers(model: nn.Module, recipe: Recipe, steps: Steps) -> dict[str, torch.optim.Optimizer]:
    """The optimisers by the name of their momentum; the first, with the empty name, always exists."""
    names = {"": None, **{turn.momentum: None for turn in steps.passes or ()}}
    return {name: make_optimiser(model, recipe, steps.optimiser) for name in names}


def make_optimiser(model: nn.Module, recipe: Recipe, kind: str | None = None) -> torch.optim.Optimizer:
    """The optimiser of a recipe, for all parameters of a model.

    Args:
        model: the model.
        recipe: learning rate, momentum, weight decay and the parameters without it.
        kind: an optimiser instead of the recipe's.

    Raises:
        ConfigError: a pattern of `recipe.no_decay` matches no parameter.
    """
    named = {plain_name(name): parameter for name, parameter in model.named_parameters()}
    without = find_undecayed(model, recipe.no_decay) if recipe.weight_decay else frozenset()
    return group_parameters(named, without, recipe, kind)


def group_parameters(
    named: Mapping[str, torch.Tensor], without: frozenset[str], recipe: Recipe, kind: str | None = None
) -> torch.optim.Optimizer:
    """The optimiser of a recipe for named parameters.

    Args:
        named: the parameters by plain name.
        without: names of those without weight decay.
        recipe: see `make_optimiser`.
        kind: see `make_optimiser`.
    """
    kind = recipe.optimiser if kind is None else kind
    groups = [
        {"params": [p for n, p in named.items() if n not in without], "weight_decay": recipe.weight_decay, "decays": 1},
        {"params": [p for n, p in named.items() if n in without], "weight_decay": 0.0, "decays": 0},
    ]
    groups = [group for group in groups if group["params"]]
    if kind == "sgd":
        nesterov = recipe.nesterov and recipe.momentum > 0
        return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=nesterov)
    known = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    return known[kind](groups, lr=recipe.learning_rate, betas=recipe.betas, eps=recipe.eps)


def choose_optimiser(
    optimisers: dict[str, torch.optim.Optimizer], turn: Pass | None, recipe: Recipe
) -> torch.optim.Optimizer:
    """The optimiser of a pass, with its weight decay."""
    if turn is None:
        return optimisers[""]
    chosen = optimisers[turn.momentum]
    for group in chosen.param_groups:
        if group["decays"]:
            group["weight_decay"] = recipe.weight_decay if turn.weight_decay is None else turn.weight_decay
    return chosen


def clear_gradients(optimisers: Iterable[torch.optim.Optimizer]) -> None:
    """A returned model carries no gradient of the last batch."""
    for optimiser in optimisers:
        optimiser.zero_grad(set_to_none=True)
