"""Schedules that prune the trained weights: one-shot, OMP, IMP."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from expunge.core.trained import clone_model
from expunge.training.train import prune_seed

from .options import check_fraction
from .registry import register_schedule
from .run import Pruned, PruningRun, copy_weights


@register_schedule("omp", starts_from="trained", scores="dense", rewinds=True)
def prune_with_rewinding(run: PruningRun) -> Pruned:
    """Rank the trained weights, rewind every tensor, train with the mask (one-shot magnitude pruning, OMP) [Jia2023].

    Every tensor is rewound to the rewind checkpoint, BatchNorm buffers and classifier included. The optimiser starts
    without state, and the learning rate continues from the epoch of the checkpoint.
    """
    model = run.build_rewound_model()
    mask, scores = run.make_mask(run.trained.model)
    (start, stop), order = run.find_epoch_range(), prune_seed(run.context.seed)
    label = f"prune to {100 * run.sparsity:g} %"
    result = run.train(model, mask=mask, start=start, stop=stop, order=order, label=label)
    line = f", rewound to epoch {start}, trained for {len(result.history)} epochs in {result.seconds:.1f} s"
    scored = copy_weights(run.trained.model)
    return run.finish(model, mask, scores, line, scored=scored, seeds={"pruning_order": order})


@register_schedule("one-shot", starts_from="trained", scores="dense", trains=False)
def prune_one_shot(run: PruningRun) -> Pruned:
    """Rank the trained weights and set the lowest to zero, without any training."""
    mask, scores = run.make_mask(run.trained.model)
    model = run.copy_model()
    mask.apply_(model)
    return run.finish(model, mask, scores, scored=copy_weights(run.trained.model))


def _check_rate(options: Mapping[str, Any], epochs: int | None) -> None:
    check_fraction("imp", "rate", options["rate"], "(0, 1)")


@register_schedule(
    "imp", starts_from="trained", scores="sparse", rewinds=True, options={"rate": 0.2}, check=_check_rate
)
def prune_iteratively(run: PruningRun) -> Pruned:
    """Prune the fraction `rate` of the kept weights, rewind, train, and repeat (iterative magnitude pruning, IMP).

    The last round reaches the sparsity exactly.
    """
    rate, (start, stop), order = (
        float(run.pruning.options["rate"]),
        run.find_epoch_range(),
        prune_seed(run.context.seed),
    )
    rounds = max(1, math.ceil(math.log(1 - run.sparsity) / math.log(1 - rate) - 1e-9)) if run.sparsity else 1
    rewound = run.build_rewound_model()
    model, mask, scores = run.trained.model, None, None
    for number in range(1, rounds + 1):
        sparsity = run.sparsity if number == rounds else 1 - (1 - rate) ** number
        mask, scores = run.make_mask(model, sparsity=sparsity, within=mask)
        model, label = clone_model(rewound), f"imp round {number} of {rounds}"
        run.train(model, mask=mask, start=start, stop=stop, order=order, label=label, part=str(number))
        model = run.context.runtime.release(model)
    assert mask is not None
    line = f" in {rounds} rounds, rewound to epoch {start} each time"
    return run.finish(model, mask, scores, line, seeds={"pruning_order": order})
