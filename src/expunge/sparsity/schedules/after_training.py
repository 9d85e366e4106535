"""Schedules that prune the trained weights: one-shot, OMP, IMP."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from expunge.core.show import plural
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
    line = f", rewound to epoch {start}, trained for {plural(len(result.history), 'epoch')} in {result.seconds:.1f} s"
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


def _find_sparsities(sparsity: float, options: Mapping[str, Any]) -> list[float]:
    """The sparsity of every round of IMP."""
    rate = float(options["rate"])
    rounds = max(1, math.ceil(math.log(1 - sparsity) / math.log(1 - rate) - 1e-9)) if sparsity else 1
    return [*(1 - (1 - rate) ** number for number in range(1, rounds)), sparsity]


@register_schedule(
    "imp",
    starts_from="trained",
    scores="sparse",
    rewinds=True,
    options={"rate": 0.2},
    check=_check_rate,
    round_sparsities=_find_sparsities,
)
def prune_iteratively(run: PruningRun) -> Pruned:
    """Prune the fraction `rate` of the kept weights, rewind, train, and repeat (iterative magnitude pruning, IMP).

    The last round reaches the sparsity exactly. With `keep_weights`, the weights that each round ranked are stored
    (named `ROUND/NAME`, rounds counted from 1).
    """
    (start, stop), order = run.find_epoch_range(), prune_seed(run.context.seed)
    sparsities = _find_sparsities(run.sparsity, run.pruning.options)
    rounds = len(sparsities)
    rewound = run.build_rewound_model()
    model, mask, scores = run.trained.model, None, None
    scored: dict[str, torch.Tensor] = {}
    for number, sparsity in enumerate(sparsities, 1):
        if run.pruning.keep_weights:
            scored |= {f"{number}/{name}": tensor for name, tensor in copy_weights(model).items()}
        mask, scores = run.make_mask(model, sparsity=sparsity, within=mask)
        model, label = clone_model(rewound), f"imp round {number} of {rounds}"
        run.train(model, mask=mask, start=start, stop=stop, order=order, label=label, part=str(number))
        model = run.context.runtime.release(model)
    assert mask is not None
    line = f" in {plural(rounds, 'round')}, rewound to epoch {start} each time"
    return run.finish(model, mask, scores, line, scored=scored, seeds={"pruning_order": order})
