"""Schedules that prune the trained weights: one-shot, OMP, IMP."""

from __future__ import annotations

import dataclasses
import math

from expunge.core.errors import ConfigError
from expunge.core.trained import Trained, clone_model
from expunge.training import checkpoint as checkpoints
from expunge.training.train import prune_seed

from .registry import (
    PruningContext,
    copy_weights,
    finish,
    get_epoch_range,
    get_rewind_state,
    refuse_patterns,
    register_schedule,
    train_masked,
)


@register_schedule("omp")
def prune_with_rewinding(trained: Trained, context: PruningContext) -> Trained:
    """One-shot magnitude pruning with rewinding (OMP) [Jia2023]: rank the final weights, rewind, train with the mask.

    Every tensor is rewound to the rewind checkpoint, BatchNorm buffers and classifier included. The optimiser starts
    without state, and the learning rate continues from the epoch of the checkpoint.
    """
    rewind = get_rewind_state(trained)
    mask, scores = context.make_mask(trained.model, trained)
    model = clone_model(trained.model)
    checkpoints.load_state(model, rewind)
    start, stop = get_epoch_range(trained, context)
    order = prune_seed(context.seed)
    label = f"prune to {100 * context.sparsity:g} %"
    result = train_masked(model, trained, context, mask=mask, start=start, stop=stop, order=order, label=label)
    line = f", rewound to epoch {start}, trained for {len(result.history)} epochs in {result.seconds:.1f} s"
    scored = copy_weights(trained.model)
    seeds = {"pruning_order": order}
    return finish(trained, context, model, mask, scores, line, schedule="omp", scored=scored, seeds=seeds)


@register_schedule("one-shot")
def prune_one_shot(trained: Trained, context: PruningContext) -> Trained:
    """Rank the final weights and set the lowest to zero, without any training."""
    mask, scores = context.make_mask(trained.model, trained)
    model = clone_model(trained.model)
    mask.apply_(model)
    scored = copy_weights(trained.model)
    return finish(trained, context, model, mask, scores, "", schedule="one-shot", scored=scored)


@register_schedule("imp", rate=0.2)
def prune_iteratively(trained: Trained, context: PruningContext) -> Trained:
    """Iterative magnitude pruning (IMP): prune the fraction `rate` of the kept weights, rewind, train, and repeat.

    The last round reaches the sparsity exactly.
    """
    rewind = get_rewind_state(trained)
    rate = float(context.options["rate"])
    if not 0 < rate < 1:
        raise ConfigError(f"rate = {rate} is not in (0, 1)", where="schedule imp")
    refuse_patterns(context, "imp")
    rounds = max(1, math.ceil(math.log(1 - context.sparsity) / math.log(1 - rate) - 1e-9)) if context.sparsity else 1
    start, stop = get_epoch_range(trained, context)
    order = prune_seed(context.seed)
    model, mask, scores = clone_model(trained.model), None, None
    for number in range(1, rounds + 1):
        sparsity = context.sparsity if number == rounds else 1 - (1 - rate) ** number
        mask, scores = context.make_mask(model, trained, sparsity=sparsity, within=mask)
        model = clone_model(trained.model)
        checkpoints.load_state(model, rewind)
        path = context.checkpoint
        step = dataclasses.replace(context, checkpoint=path and path.with_name(f"{path.name}.{number}"))
        label = f"imp round {number} of {rounds}"
        train_masked(model, trained, step, mask=mask, start=start, stop=stop, order=order, label=label)
        model = context.runtime.release(model)
    assert mask is not None
    line = f" in {rounds} rounds, rewound to epoch {start} each time"
    seeds = {"pruning_order": order}
    return finish(trained, context, model, mask, scores, line, schedule="imp", seeds=seeds)
