"""Schedules that start from the initial weights: pruning at initialisation, gradual and soft pruning."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import nn

from expunge.core.errors import ConfigError, MaskError
from expunge.core.mask import Mask
from expunge.core.show import plural

from .options import check_count, check_fraction
from .pruning import count_rounds
from .registry import get_schedule, register_schedule
from .run import Pruned, PruningRun, copy_weights


def _check_rounds(options: Mapping[str, Any], epochs: int | None) -> None:
    check_count("at-init", "rounds", options["rounds"])


@register_schedule("at-init", starts_from="initial", scores="initial", options={"rounds": 0}, check=_check_rounds)
def prune_at_initialisation(run: PruningRun) -> Pruned:
    """Rank the initial weights over exponential rounds (SynFlow, SNIP, GraSP, random), train with the mask.

    The density is (1 - s)^(k / rounds) after round k, and every round computes the scores again on the kept weights.
    `rounds` 0 means the criterion's own number: 100 with SynFlow (as in its paper and in [Jia2023]), 1 otherwise.
    """
    rounds = count_rounds(get_schedule(run.pruning.schedule), run.pruning.rule, run.pruning.options)
    model = run.build_initial_model()
    mask, scores = None, None
    for number in range(1, rounds + 1):
        sparsity = run.sparsity if number == rounds else 1 - (1 - run.sparsity) ** (number / rounds)
        mask, scores = run.make_mask(model, sparsity=sparsity, within=mask, batch_statistics=True)
        mask.apply_(model)
    assert mask is not None
    kept = run.recipe.kept_epochs
    result = run.train(
        model, mask=mask, order=run.order, label=f"train at {100 * mask.sparsity:g} % sparsity", snapshots=kept
    )
    line = f" at initialisation in {plural(rounds, 'round')}, trained for {plural(run.recipe.epochs, 'epoch')}"
    early = {epoch: result.snapshots[epoch] for epoch in kept}
    return run.finish(model, mask, scores, line, early=early)


def find_gradual_epochs(options: Mapping[str, Any], epochs: int) -> tuple[int, int]:
    """The epochs before which gradual pruning makes its first and its last mask.

    Args:
        options: `begin` and `end`, fractions of the recipe.
        epochs: length of the recipe.

    Raises:
        MaskError: the recipe is too short.
    """
    begin, end = float(options["begin"]), float(options["end"])
    first, last = int(begin * epochs), max(int(begin * epochs) + 1, int(end * epochs))
    if last >= epochs:
        raise MaskError(
            f"a recipe of {plural(epochs, 'epoch')} is too short to prune gradually and to train afterwards",
            where="schedule gradual",
            hint="use a longer recipe, or the schedule omp",
        )
    return first, last


def _check_course(options: Mapping[str, Any], epochs: int | None) -> None:
    begin, end = options["begin"], options["end"]
    check_fraction("gradual", "begin", begin, "[0, 1)")
    check_fraction("gradual", "end", end, "(0, 1]")
    if not begin < end:
        raise ConfigError(f"begin = {begin}, end = {end}: begin must be less than end", where="schedule gradual")
    if epochs is not None:
        find_gradual_epochs(options, epochs)


@register_schedule(
    "gradual", starts_from="initial", scores="sparse", options={"begin": 0.2, "end": 0.7}, check=_check_course
)
def prune_gradually(run: PruningRun) -> Pruned:
    """Increase the sparsity along a cubic curve during one training from the initial weights [Zhu2018]_.

    Before each epoch between the fractions `begin` and `end` of the recipe, the sparsity is set to
    s_t = s (1 - (1 - t)^3), t from 0 to 1. A pruned weight stays pruned.

    .. [Zhu2018] Zhu, Gupta: To prune, or not to prune, ICLR workshop 2018.
    """
    first, last = find_gradual_epochs(run.pruning.options, run.recipe.epochs)
    model = run.build_initial_model()
    all_kept = run.make_mask(model, sparsity=0.0)[0]

    def before(model: nn.Module, epoch: int) -> Mask | None:
        if epoch < first:
            return None
        progress = min(1.0, (epoch - first) / (last - first))
        target = run.sparsity * (1 - (1 - progress) ** 3)
        return run.make_mask(model, sparsity=target, within=None if epoch == first else run.read_mask(model, all_kept))[
            0
        ]

    # an earlier epoch must not be restored: its model is less sparse. So the last epoch is selected
    recipe = dataclasses.replace(run.recipe, select="last")
    run.train(model, order=run.order, label="prune gradually", recipe=recipe, before_epoch=before)
    model = run.context.runtime.release(model)
    mask, scores = run.make_mask(model, within=run.read_mask(model, all_kept))
    return run.finish(model, mask, scores, f" gradually in epochs {first + 1} to {last + 1} of {recipe.epochs}")


@register_schedule("soft-filter", starts_from="initial", scores="dense")
def prune_softly(run: PruningRun) -> Pruned:
    """Set the lowest channels to zero before every epoch, where they may grow again; prune at the end [He2018]_.

    During training only the weights are set to zero. If its bias, scale and shift were 0 too, a channel before a ReLU
    would have no gradient and could not grow again. At the end, whole channels are pruned.

    .. [He2018] He et al.: Soft filter pruning, IJCAI 2018.
    """

    def before(model: nn.Module, epoch: int) -> Mask | None:
        if epoch:
            mask = run.make_mask(model)[0]
            rows = {name: kept for name, kept in mask.kept.items() if kept.dim() > 1}
            Mask(rows, mask.provenance).apply_(model)
        return None

    model, recipe = run.build_initial_model(), dataclasses.replace(run.recipe, select="last")
    run.train(model, order=run.order, label="prune softly", recipe=recipe, before_epoch=before)
    model = run.context.runtime.release(model)
    scored = copy_weights(model)
    mask, scores = run.make_mask(model)
    mask.apply_(model)
    return run.finish(model, mask, scores, f" softly over {plural(recipe.epochs, 'epoch')}", scored=scored)
