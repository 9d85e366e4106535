"""Schedules that prune the trained weights: one-shot, OMP, IMP."""

from __future__ import annotations

import dataclasses
import math

from expunge.core.errors import ConfigError
from expunge.core.trained import Trained, clone_model
from expunge.training import checkpoint as checkpoints
from expunge.training.train import prune_seed

from .registry import (
    Pruning,
    finished,
    last_epoch,
    refuse_patterns,
    register_schedule,
    rewind_state,
    train_masked,
    weights_of,
)


@register_schedule("omp")
def one_shot_with_rewinding(trained: Trained, pruning: Pruning) -> Trained:
    """OMP, paper A: rank the final weights, rewind every tensor, train on with the mask.

    Every tensor goes back to the rewind checkpoint, BatchNorm buffers and classifier included; the optimiser starts
    anew and the learning-rate schedule stands where it stood at the checkpoint.
    """
    rewind = rewind_state(trained)
    mask, scores = pruning.mask(trained.model, trained)
    model = clone_model(trained.model)
    checkpoints.load_state(model, rewind)
    start, stop = last_epoch(trained, pruning)
    order = prune_seed(pruning.seed)
    label = f"prune to {100 * pruning.sparsity:g} %"
    result = train_masked(model, trained, pruning, mask=mask, start=start, stop=stop, order=order, label=label)
    line = f", rewound to epoch {start}, trained for {len(result.history)} epochs in {result.seconds:.1f} s"
    scored = weights_of(trained.model)
    seeds = {"pruning_order": order}
    return finished(trained, pruning, model, mask, scores, line, schedule="omp", scored=scored, seeds=seeds)


@register_schedule("one-shot")
def one_shot(trained: Trained, pruning: Pruning) -> Trained:
    """Rank the final weights and set the lowest to zero; nothing is trained."""
    mask, scores = pruning.mask(trained.model, trained)
    model = clone_model(trained.model)
    mask.apply_(model)
    scored = weights_of(trained.model)
    return finished(trained, pruning, model, mask, scores, "", schedule="one-shot", scored=scored)


@register_schedule("imp", rate=0.2)
def iterative(trained: Trained, pruning: Pruning) -> Trained:
    """IMP: prune `rate` of what is left, rewind, train, and again, until the sparsity is reached exactly."""
    rewind = rewind_state(trained)
    rate = float(pruning.options["rate"])
    if not 0 < rate < 1:
        raise ConfigError(f"rate = {rate} is not in (0, 1)", where="schedule imp")
    refuse_patterns(pruning, "imp")
    rounds = max(1, math.ceil(math.log(1 - pruning.sparsity) / math.log(1 - rate) - 1e-9)) if pruning.sparsity else 1
    start, stop = last_epoch(trained, pruning)
    order = prune_seed(pruning.seed)
    model, mask, scores = clone_model(trained.model), None, None
    for number in range(1, rounds + 1):
        sparsity = pruning.sparsity if number == rounds else 1 - (1 - rate) ** number
        mask, scores = pruning.mask(model, trained, sparsity=sparsity, within=mask)
        model = clone_model(trained.model)
        checkpoints.load_state(model, rewind)
        once = pruning.checkpoint
        step = dataclasses.replace(pruning, checkpoint=once and once.with_name(f"{once.name}.{number}"))
        label = f"imp round {number} of {rounds}"
        train_masked(model, trained, step, mask=mask, start=start, stop=stop, order=order, label=label)
        model = pruning.runtime.release(model)
    assert mask is not None
    line = f" in {rounds} rounds, rewound to epoch {start} each time"
    seeds = {"pruning_order": order}
    return finished(trained, pruning, model, mask, scores, line, schedule="imp", seeds=seeds)
