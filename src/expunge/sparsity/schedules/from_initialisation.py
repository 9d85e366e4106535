"""Schedules that start from the initial weights: pruning at initialisation, gradually, softly."""

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
from expunge.sparsity.channels.groups import expand, find_channels, unit_alive
from expunge.training.recipes import recipe as as_recipe

from .registry import Pruning, finished, initial_model, refuse_patterns, register_schedule, train_masked, weights_of


@register_schedule("at-init", rounds=0)
def at_initialisation(trained: Trained, pruning: Pruning) -> Trained:
    """Rank the initial weights and train from them with the mask: SynFlow, SNIP, GraSP, random.

    The density falls exponentially over `rounds`, (1 - s)^(k / rounds) after round k, scores being taken anew on what
    is left; 0 stands for 100 rounds with SynFlow (its paper, and paper A) and 1 otherwise.
    """
    rounds = int(pruning.options["rounds"]) or (100 if pruning.rule.criterion == "SynFlow" else 1)
    if rounds < 1:
        raise ConfigError(f"rounds = {rounds} is too small", where="schedule at-init")
    if ":" in pruning.rule.granularity:
        rounds = 1
    model = initial_model(trained)
    mask, scores = None, None
    for number in range(1, rounds + 1):
        sparsity = pruning.sparsity if number == rounds else 1 - (1 - pruning.sparsity) ** (number / rounds)
        mask, scores = pruning.mask(model, trained, sparsity=sparsity, within=mask, batch_statistics=True)
        mask.apply_(model)
    assert mask is not None
    recipe, order = as_recipe(trained.provenance.recipe), trained.provenance.seeds["order"]
    label = f"train at {100 * mask.sparsity:g} % sparsity"
    train_masked(model, trained, pruning, mask=mask, start=0, stop=recipe.epochs, order=order, label=label)
    line = f" at initialisation in {rounds} rounds, trained for {recipe.epochs} epochs"
    return finished(trained, pruning, model, mask, scores, line, schedule="at-init")


def alive_by_zeros(model: nn.Module, pruning: Pruning, names: Iterable[str]) -> Mask:
    """What pruning has left alive so far, read from the zeros of the weights: those that are not exactly 0.

    Of a coupled channel the rows that make it say so; its biases, scales and shifts, which may be 0 by chance or by
    their initialisation, live and die with it.
    """
    parameters = {plain_name(name): p.detach().cpu() for name, p in model.named_parameters()}
    if pruning.rule.granularity != "filter":
        return Mask({name: parameters[name] != 0 for name in names}, MaskProvenance("zeros"))
    channels = find_channels(model, pruning.records.input_shape)
    rows = {n: t != 0 if t.dim() > 1 else torch.zeros(t.shape, dtype=torch.bool) for n, t in parameters.items()}
    ranked = np.zeros(channels.units, dtype=bool)
    for units in channels.pools(pruning.rule.layers).values():
        ranked[units] = True
    return Mask(expand(channels, unit_alive(channels, rows), ranked), MaskProvenance("zeros"))


def gradual_span(options: Mapping[str, Any], epochs: int) -> tuple[int, int]:
    """The epochs before which gradual pruning begins and ends.

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
            f"a recipe of {epochs} epochs leaves no time to prune gradually and to train afterwards",
            where="schedule gradual",
            hint="use a longer recipe, or the schedule omp",
        )
    return first, last


@register_schedule("gradual", begin=0.2, end=0.7)
def gradually(trained: Trained, pruning: Pruning) -> Trained:
    """Gradual pruning during one training from the initial weights [Zhu2018]_.

    Before each epoch from share `begin` to share `end` of the recipe, s_t = s (1 - (1 - t)^3) with t from 0 to 1; what
    is dead stays dead.

    .. [Zhu2018] Zhu, Gupta: To prune, or not to prune, ICLR workshop 2018.
    """
    refuse_patterns(pruning, "gradual")
    recipe = as_recipe(trained.provenance.recipe)
    first, last = gradual_span(pruning.options, recipe.epochs)

    model = initial_model(trained)
    names = _names(pruning, trained, model)

    def before(model: nn.Module, epoch: int) -> Mask | None:
        if epoch < first:
            return None
        share = min(1.0, (epoch - first) / (last - first))
        target = pruning.sparsity * (1 - (1 - share) ** 3)
        within = None if epoch == first else alive_by_zeros(model, pruning, names)
        return pruning.mask(model, trained, sparsity=target, within=within)[0]

    # a model whose weights were changed by later pruning must not be put back: keep the last epoch
    final = dataclasses.replace(trained, provenance=_keeping_last(trained))
    order = trained.provenance.seeds["order"]
    train_masked(
        model, final, pruning, mask=None, start=0, stop=recipe.epochs, order=order, label="prune gradually",
        before_epoch=before,
    )  # fmt: skip
    model = pruning.runtime.release(model)
    mask, scores = pruning.mask(model, trained, within=alive_by_zeros(model, pruning, names))
    line = f" gradually in epochs {first + 1} to {last + 1} of {recipe.epochs}"
    return finished(trained, pruning, model, mask, scores, line, schedule="gradual")


@register_schedule("soft-filter")
def softly(trained: Trained, pruning: Pruning) -> Trained:
    """Soft filter pruning [He2018]_: before each epoch the lowest are set to zero, and may grow again; last, for good.

    Until the end the weights alone are set to zero. With its bias, scale and shift at 0 too, a channel would have no
    gradient behind a ReLU, and never come back.

    .. [He2018] He et al.: Soft filter pruning, IJCAI 2018.
    """
    recipe = as_recipe(trained.provenance.recipe)

    def before(model: nn.Module, epoch: int) -> Mask | None:
        if epoch:
            mask = pruning.mask(model, trained)[0]
            rows = {name: alive for name, alive in mask.alive.items() if alive.dim() > 1}
            Mask(rows, mask.provenance).apply_(model)
        return None

    model = initial_model(trained)
    final = dataclasses.replace(trained, provenance=_keeping_last(trained))
    order = trained.provenance.seeds["order"]
    train_masked(
        model, final, pruning, mask=None, start=0, stop=recipe.epochs, order=order, label="prune softly",
        before_epoch=before,
    )  # fmt: skip
    model = pruning.runtime.release(model)
    scored = weights_of(model)
    mask, scores = pruning.mask(model, trained)
    mask.apply_(model)
    line = f" softly over {recipe.epochs} epochs"
    return finished(trained, pruning, model, mask, scores, line, schedule="soft-filter", scored=scored)


def _keeping_last(trained: Trained) -> Provenance:
    recipe = {**trained.provenance.recipe, "select": "last"}
    return dataclasses.replace(trained.provenance, recipe=recipe)


def _names(pruning: Pruning, trained: Trained, model: nn.Module) -> list[str]:
    """Names of the tensors that the granularity masks."""
    return list(pruning.mask(model, trained, sparsity=0.0)[0].alive)
