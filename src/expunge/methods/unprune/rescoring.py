"""What re-pruning and rescoring need: samples of records, and checks that a model can be scored again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import nn

from expunge.core.errors import MaskError, MethodError
from expunge.core.mask import Mask
from expunge.core.seeds import derive, epoch_order
from expunge.core.split import Ids
from expunge.core.trained import Trained
from expunge.data.batches import Batches
from expunge.methods.base import Context
from expunge.sparsity import Schedule, recorded_granularity, recorded_schedule, schedule_names
from expunge.training.batchnorm import join_single_records
from expunge.training.recipes import get_recipe
from expunge.training.runtime import Runtime

#: Smallest batch for gradients and curvature products: in evaluation mode, the batch size only affects the speed.
MIN_BATCH = 256


def sample(trained: Trained, context: Context, ids: Ids, limit: int, runtime: Runtime | None = None) -> Batches:
    """Sample at most `limit` of the records by hash, as pruning samples the records for its scores.

    With a runtime, the batches are larger and on its device.
    """
    records = context.records
    rows = records.rows(ids)
    seed = derive(trained.provenance.seeds.get("pruning", 0), "score")
    chosen = rows[epoch_order(records.keys[rows], seed, 0)[:limit]]
    batches = Batches(records, chosen, batch_size=get_recipe(trained.provenance.recipe).batch_size)
    return join_single_records(trained.model, batches if runtime is None else place_batches(batches, runtime))


def place_batches(batches: Batches, runtime: Runtime) -> Batches:
    """Return the same records in larger batches on the runtime's device."""
    size = max(batches.batch_size, MIN_BATCH)
    placement: dict[str, Any] = {"device": runtime.torch_device, "channels_last": runtime.channels_last}
    placement["workers"] = runtime.workers
    return dataclasses.replace(batches, batch_size=size, **placement)


def recorded_score_records(mask: Mask, limit: int) -> int:
    """Return the number of records that pruning scored on, or `limit` if it is not recorded."""
    return int(mask.provenance.details.get("score_records") or limit)


def complete_mask(mask: Mask, original: Mask) -> Mask:
    """Add the original's provenance, and its tensors that no rule ranks (masked biases, for example)."""
    unranked = {name: kept for name, kept in original.kept.items() if name not in mask.kept}
    return Mask({**unranked, **mask.kept}, original.provenance)


def count_replaced(before: Mask, after: Mask) -> str:
    """How many kept weights the new mask prunes, and how many it keeps that were pruned, in words.

    Example:
        >>> import torch
        >>> from expunge.core.mask import MaskProvenance
        >>> old, new = (Mask({"w": torch.tensor(k)}, MaskProvenance("x")) for k in ([True, False], [False, True]))
        >>> count_replaced(old, new)
        'the new mask prunes 1 of 1 kept weights and keeps 1 of 1 pruned ones'
    """
    lost = regrown = kept = total = 0
    for name, old in before.kept.items():
        new = after.kept.get(name, old)
        lost, regrown = lost + int((old & ~new).sum()), regrown + int((new & ~old).sum())
        kept, total = kept + int(old.sum()), total + old.numel()
    return (
        f"the new mask prunes {lost:,} of {kept:,} kept weights and keeps {regrown:,} of {total - kept:,} pruned ones"
    )


def check_channels(mask: Mask, model: nn.Module, architecture: Mapping[str, Any]) -> None:
    """Raise MaskError if a mask does not name the tensors of its granularity: with `filter`, those of its channels."""
    if not mask.kept:
        return
    granularity = recorded_granularity(mask.provenance)
    expected = granularity.find_tensors(model, tuple(mask.provenance.layers), tuple(architecture["input_shape"]))
    if expected is None:
        return
    differences = sorted(expected.symmetric_difference(mask.kept))
    if differences:
        raise MaskError(
            f"the mask is declared to prune {granularity.unit_name} of {', '.join(mask.provenance.layers)} layers, but "
            + ("does not name" if differences[0] in expected else "names")
            + f" {differences[0]}",
            where=f"granularity {granularity.name}",
            hint="a channel has rows, biases, BatchNorm scales and shifts; otherwise declare granularity=weight",
        )


def check_scored(trained: Trained) -> None:
    """Raise MethodError if the model does not have the dense weights that the influence rule scores again.

    The rule estimates these weights as training without D_f would have left them. For a mask made at initialisation,
    the initial weights are enough.
    """
    assert trained.mask is not None
    schedule = check_schedule(recorded_schedule(trained.mask), trained.mask.provenance.schedule)
    if schedule.keeps_scored_weights and "pruning_weights" not in trained.state:
        raise MethodError(
            "the influence rule needs the weights from before pruning, which are not stored",
            where="state pruning_weights",
            hint="prune with keep_weights=True, or use rule=magnitude or gradient",
        )


def scores_initial_weights(mask: Mask) -> bool:
    """Whether a mask follows from the initial weights."""
    schedule = recorded_schedule(mask)
    return schedule is not None and schedule.scores_initial_weights


def check_schedule(schedule: Schedule | None, name: str) -> Schedule:
    """Return a schedule; raise MethodError if it is unknown, or ranked weights that were already sparse."""
    if schedule is None or schedule.stepwise:
        usable = ", ".join([*schedule_names(scores="dense"), *schedule_names(scores="initial")])
        raise MethodError(
            f"the schedule {name} ranked weights that were already sparse; the influence rule needs scores of "
            "dense weights",
            where="Un-prune.rule",
            hint=f"use rule=magnitude or gradient, or prune with one of {usable}",
        )
    return schedule
