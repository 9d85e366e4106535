"""Schedules that start from the initial weights: pruning at initialisation, gradual and soft pruning."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from expunge.core.errors import ConfigError, MaskError
from expunge.core.hashing import plain_name
from expunge.core.mask import Mask, MaskProvenance
from expunge.core.trained import Provenance, Trained
from expunge.sparsity.channels.groups import expand_units, find_channels, find_kept_units
from expunge.training.recipes import get_recipe

from .registry import (
    PruningContext,
    build_initial_model,
    copy_weights,
    finish,
    refuse_patterns,
    register_schedule,
    train_masked,
)


@register_schedule("at-init", rounds=0)
def prune_at_initialisation(trained: Trained, context: PruningContext) -> Trained:
    """Rank the initial weights (SynFlow, SNIP, GraSP, random) and train from them with the mask.

    The density falls exponentially: it is (1 - s)^(k / rounds) after round k, and every round computes the scores again
    on the kept weights. `rounds` 0 means 100 with SynFlow (as in its paper and in [Jia2023]) and 1 otherwise.
    """
    rounds = int(context.options["rounds"]) or (100 if context.rule.criterion == "SynFlow" else 1)
    if rounds < 1:
        raise ConfigError(f"rounds = {rounds} is too small", where="schedule at-init")
    if ":" in context.rule.granularity:
        rounds = 1
    model = build_initial_model(trained)
    mask, scores = None, None
    for number in range(1, rounds + 1):
        sparsity = context.sparsity if number == rounds else 1 - (1 - context.sparsity) ** (number / rounds)
        mask, scores = context.make_mask(model, trained, sparsity=sparsity, within=mask, batch_statistics=True)
        mask.apply_(model)
    assert mask is not None
    recipe, order = get_recipe(trained.provenance.recipe), trained.provenance.seeds["order"]
    label = f"train at {100 * mask.sparsity:g} % sparsity"
    train_masked(model, trained, context, mask=mask, start=0, stop=recipe.epochs, order=order, label=label)
    line = f" at initialisation in {rounds} rounds, trained for {recipe.epochs} epochs"
    return finish(trained, context, model, mask, scores, line, schedule="at-init")


def read_kept_weights(model: nn.Module, context: PruningContext, names: Iterable[str]) -> Mask:
    """Read from the values of the weights which are kept so far: those that are not exactly 0.

    A coupled channel is kept if a row that produces it is not zero. Its biases, scales and shifts may be 0 by chance or
    by initialisation, so they follow the channel.
    """
    parameters = {plain_name(name): p.detach().cpu() for name, p in model.named_parameters()}
    if context.rule.granularity != "filter":
        return Mask({name: parameters[name] != 0 for name in names}, MaskProvenance("zeros"))
    channels = find_channels(model, context.records.input_shape)
    rows = {n: t != 0 if t.dim() > 1 else torch.zeros(t.shape, dtype=torch.bool) for n, t in parameters.items()}
    ranked = np.zeros(channels.units, dtype=bool)
    for units in channels.pools(context.rule.layers).values():
        ranked[units] = True
    return Mask(expand_units(channels, find_kept_units(channels, rows), ranked), MaskProvenance("zeros"))


def gradual_epochs(options: Mapping[str, Any], epochs: int) -> tuple[int, int]:
    """The epochs before which gradual pruning makes its first and its last mask.

    Args:
        options: `begin` and `end`, fractions of the recipe.
        epochs: length of the recipe.

    Raises:
        ConfigError: not 0 <= begin < end <= 1.
        MaskError: the recipe is too short.
    """
    begin, end = float(options["begin"]), float(options["end"])
    if not 0 <= begin < end <= 1:
        raise ConfigError(f"begin = {begin}, end = {end}: 0 <= begin < end <= 1", where="schedule gradual")
    first, last = int(begin * epochs), max(int(begin * epochs) + 1, int(end * epochs))
    if last >= epochs:
        raise MaskError(
            f"a recipe of {epochs} epochs is too short to prune gradually and to train afterwards",
            where="schedule gradual",
            hint="use a longer recipe, or the schedule omp",
        )
    return first, last


@register_schedule("gradual", begin=0.2, end=0.7)
def prune_gradually(trained: Trained, context: PruningContext) -> Trained:
    """Gradual pruning during one training from the initial weights [Zhu2018]_.

    Before each epoch between the fractions `begin` and `end` of the recipe, the sparsity is set to
    s_t = s (1 - (1 - t)^3), t from 0 to 1. A pruned weight stays pruned.

    .. [Zhu2018] Zhu, Gupta: To prune, or not to prune, ICLR workshop 2018.
    """
    refuse_patterns(context, "gradual")
    recipe = get_recipe(trained.provenance.recipe)
    first, last = gradual_epochs(context.options, recipe.epochs)

    model = build_initial_model(trained)
    names = _masked_names(context, trained, model)

    def before(model: nn.Module, epoch: int) -> Mask | None:
        if epoch < first:
            return None
        progress = min(1.0, (epoch - first) / (last - first))
        target = context.sparsity * (1 - (1 - progress) ** 3)
        within = None if epoch == first else read_kept_weights(model, context, names)
        return context.make_mask(model, trained, sparsity=target, within=within)[0]

    # an earlier epoch must not be restored: its model is less sparse. So the last epoch is selected
    final = dataclasses.replace(trained, provenance=_select_last_epoch(trained))
    order = trained.provenance.seeds["order"]
    train_masked(
        model, final, context, mask=None, start=0, stop=recipe.epochs, order=order, label="prune gradually",
        before_epoch=before,
    )  # fmt: skip
    model = context.runtime.release(model)
    mask, scores = context.make_mask(model, trained, within=read_kept_weights(model, context, names))
    line = f" gradually in epochs {first + 1} to {last + 1} of {recipe.epochs}"
    return finish(trained, context, model, mask, scores, line, schedule="gradual")


@register_schedule("soft-filter")
def prune_softly(trained: Trained, context: PruningContext) -> Trained:
    """Soft filter pruning [He2018]_: before each epoch the lowest are set to zero but may grow again; then prune.

    During training only the weights are set to zero. If its bias, scale and shift were 0 too, a channel before a ReLU
    would have no gradient and could not grow again. At the end, whole channels are pruned.

    .. [He2018] He et al.: Soft filter pruning, IJCAI 2018.
    """
    recipe = get_recipe(trained.provenance.recipe)

    def before(model: nn.Module, epoch: int) -> Mask | None:
        if epoch:
            mask = context.make_mask(model, trained)[0]
            rows = {name: kept for name, kept in mask.kept.items() if kept.dim() > 1}
            Mask(rows, mask.provenance).apply_(model)
        return None

    model = build_initial_model(trained)
    final = dataclasses.replace(trained, provenance=_select_last_epoch(trained))
    order = trained.provenance.seeds["order"]
    train_masked(
        model, final, context, mask=None, start=0, stop=recipe.epochs, order=order, label="prune softly",
        before_epoch=before,
    )  # fmt: skip
    model = context.runtime.release(model)
    scored = copy_weights(model)
    mask, scores = context.make_mask(model, trained)
    mask.apply_(model)
    line = f" softly over {recipe.epochs} epochs"
    return finish(trained, context, model, mask, scores, line, schedule="soft-filter", scored=scored)


def _select_last_epoch(trained: Trained) -> Provenance:
    """The provenance with a recipe that returns the model of the last epoch, not of the best one."""
    recipe = {**trained.provenance.recipe, "select": "last"}
    return dataclasses.replace(trained.provenance, recipe=recipe)


def _masked_names(context: PruningContext, trained: Trained, model: nn.Module) -> list[str]:
    """Names of the tensors that the granularity masks."""
    return list(context.make_mask(model, trained, sparsity=0.0)[0].kept)
