"""The parts of un-pruning that read records: growth by gradients, re-pruning, re-thresholding by influence."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from expunge.core.errors import MaskError, MethodError
from expunge.core.mask import Mask
from expunge.core.outcome import Outcome
from expunge.core.request import ForgetRequest
from expunge.core.seeds import derive, epoch_order
from expunge.core.split import Ids, Split
from expunge.core.trained import Trained, clone_model
from expunge.data.batches import Batches
from expunge.methods.base import Context
from expunge.models import Architecture
from expunge.sparsity import get_criterion, make_mask, rule_of
from expunge.sparsity.channels.groups import expand_units, find_channels
from expunge.training import checkpoint as checkpoints
from expunge.training import curvature
from expunge.training.recipes import recipe as as_recipe
from expunge.training.runtime import Runtime

from .influence import training_time, without_forget
from .initial_weights import revived

#: Schedules whose final scores were taken from weights that training had finished with.
SCORED_AT_THE_END = ("omp", "one-shot", "soft-filter")
#: Records in a batch of gradients and curvature products: they run in evaluation mode, where wider is only faster.
WIDE = 256


@dataclasses.dataclass
class Spent:
    """What a composite method has spent so far, and what its parts rewrote."""

    trained_records: int = 0
    forward_records: int = 0
    seconds: float = 0.0
    rewrote: set[str] = dataclasses.field(default_factory=set)
    history: list[Any] = dataclasses.field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """Count the outcome of an inner method."""
        self.trained_records += outcome.cost.trained_records
        self.forward_records += outcome.cost.forward_records
        self.seconds += outcome.cost.seconds
        self.rewrote |= set(outcome.rewrote)
        self.history.extend(outcome.history)

    @contextlib.contextmanager
    def clock(self) -> Iterator[None]:
        """Count the seconds of a block."""
        begun = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - begun


def sample(trained: Trained, context: Context, ids: Ids, limit: int, runtime: Runtime | None = None) -> Batches:
    """At most `limit` of the records, chosen by hash as pruning chooses the records that it scores on.

    With a runtime they come in wide batches on its device.
    """
    records = context.records
    rows = records.rows(ids)
    seed = derive(trained.provenance.seeds.get("pruning", 0), "score")
    chosen = rows[epoch_order(records.keys[rows], seed, 0)[:limit]]
    batches = Batches(records, chosen, batch_size=as_recipe(trained.provenance.recipe).batch_size)
    return batches if runtime is None else _wide(batches, runtime)


def _wide(batches: Batches, runtime: Runtime) -> Batches:
    """The same records in wider batches on the runtime's device."""
    width = max(batches.batch_size, WIDE)
    place: dict[str, Any] = {"device": runtime.torch_device, "channels_last": runtime.channels_last}
    return dataclasses.replace(batches, batch_size=width, **place)


def _as_pruned(mask: Mask, limit: int) -> int:
    """How many records pruning scored on, or `limit` where it is not recorded."""
    return int(mask.provenance.details.get("score_records") or limit)


def gradient_scores(
    current: Trained,
    values: Mapping[str, torch.Tensor],
    retain: Ids,
    context: Context,
    limit: int,
    spent: Spent,
) -> dict[str, torch.Tensor]:
    """|dL_r/dw| of every weight the mask speaks of, dead ones at 0 (as RigL grows [Evci2020]_), evaluation mode.

    A dead channel at 0 has no gradient at all behind a ReLU. So channels are ranked with the dead ones at the `values`
    that they would grow from, and with the batches' statistics: those that were tracked while they were dead are of
    nothing.
    """
    mask = current.mask
    assert mask is not None
    runtime = context.runtime
    batches = sample(current, context, retain, limit, runtime)
    channels = mask.provenance.granularity == "filter"
    everything = Mask({name: torch.ones_like(alive) for name, alive in mask.alive.items()}, mask.provenance)
    model = revived(current.model, mask, everything, values) if channels else clone_model(current.model)
    slopes = curvature.gradient(
        runtime.place(model), batches.in_order(), names=list(mask.alive), batch_statistics=channels
    )
    spent.trained_records += batches.count
    return {name: slope.abs().cpu() for name, slope in slopes.items()}


def re_prune(current: Trained, original: Mask, split: Split, context: Context, limit: int, spent: Spent) -> Mask:
    """The mask of the original's rule at its sparsity among the weights that live now; D_r is all that is read."""
    rule = rule_of(original)
    batches = None
    if get_criterion(rule.criterion).needs_data:
        source = sample(current, context, split.retain, _as_pruned(original, limit))
        batches = source.in_order
        spent.trained_records += source.count
    mask, _ = make_mask(
        current.model,
        rule,
        input_shape=context.records.input_shape,
        batches=batches,
        seed=current.provenance.seeds.get("pruning", 0),
        within=current.mask,
        only=original.alive,
        sparsity=rule.sparsity,
    )
    return _whole(mask, original)


def _whole(mask: Mask, original: Mask) -> Mask:
    """The new mask with the original's provenance, and with its tensors that no rule ranks (biases masked by hand)."""
    kept = {name: alive for name, alive in original.alive.items() if name not in mask.alive}
    return Mask({**kept, **mask.alive}, original.provenance)


def check_channels(mask: Mask, model: nn.Module, architecture: Mapping[str, Any]) -> None:
    """Raise MaskError where a mask is said to prune channels but names other tensors than whole channels have."""
    if mask.provenance.granularity != "filter" or not mask.alive:
        return
    channels = find_channels(model, tuple(architecture["input_shape"]))
    every = np.ones(channels.units, dtype=bool)
    taking_part = np.zeros(channels.units, dtype=bool)
    for units in channels.pools(tuple(mask.provenance.layers)).values():
        taking_part[units] = True
    wanted = set(expand_units(channels, every, taking_part))
    strange = sorted(wanted.symmetric_difference(mask.alive))
    if strange:
        raise MaskError(
            f"the mask is said to prune channels of {', '.join(mask.provenance.layers)} layers, but "
            + ("does not name" if strange[0] in wanted else "names")
            + f" {strange[0]}",
            where="granularity filter",
            hint="whole channels are rows, biases, BatchNorm scales and shifts; otherwise say granularity=weight",
        )


def check_scored(trained: Trained) -> None:
    """Raise MethodError unless the model still has what the influence rule re-scores; masks made at initialisation do.

    Dense weights of pruning time are wanted, because the rule estimates where training without D_f would have left
    them.
    """
    assert trained.mask is not None
    check_schedule(trained.mask.provenance.schedule)
    if trained.mask.provenance.schedule != "at-init" and "pruning_weights" not in trained.state:
        raise MethodError(
            "the weights of pruning time are not there, and the influence rule moves their scores",
            where="state pruning_weights",
            hint="prune with keep_weights=True, or use rule=magnitude or gradient",
        )


def check_schedule(schedule: str) -> None:
    """Raise MethodError where a schedule ranked weights that were sparse already."""
    if schedule not in (*SCORED_AT_THE_END, "at-init"):
        raise MethodError(
            f"the schedule {schedule} ranked weights that were sparse already; the influence rule needs scores of "
            "dense weights",
            where="Un-prune.rule",
            hint="use rule=magnitude or gradient, or prune with omp, one-shot, soft-filter or at-init",
        )


def influence_mask(
    trained: Trained,
    request: ForgetRequest,
    context: Context,
    *,
    initial: Callable[[Trained], nn.Module] | None,
    records: int,
    kind: str,
    steps: int,
    unlearn: Callable[[Trained], Outcome],
    spent: Spent,
) -> Mask:
    """The mask that pruning would have made of the weights that training without D_f would have given, estimated.

    A mask made at initialisation was made of weights that no record touched: its scores are taken anew on D_r, which is
    exact but for the sample of records. Otherwise the dense weights of pruning time are corrected by influence
    (`expunge.methods.unprune.influence`), or unlearned by the method itself (`kind="method"`), and scored anew.

    Raises:
        MethodError: those weights are not there, or the schedule scored weights that were sparse already.
    """
    mask = trained.mask
    assert mask is not None
    split = request.apply(trained.split)
    retain = sample(trained, context, split.retain, _as_pruned(mask, records) if initial else records)
    if initial is not None:
        model = initial(trained)
        _measure_inputs_anew(model, trained, context, split)
        if (
            mask.provenance.details.get("options", {}).get("rounds", 0) not in (0, 1)
            or mask.provenance.criterion == "SynFlow"
        ):
            return _rounds_anew(model, mask, retain, trained, spent)
    else:
        check_scored(trained)
        model = Architecture.from_json(trained.provenance.architecture).build(0)
        checkpoints.load_state(model, trained.state["pruning_weights"])
        if kind == "method":
            outcome = unlearn(dataclasses.replace(trained, model=model, mask=None, state={}))
            model = outcome.trained.model
            spent.trained_records += outcome.cost.trained_records
            spent.forward_records += outcome.cost.forward_records
        else:
            model = _corrected(model, trained, request, context, retain, kind, steps, spent)
    return _whole(_mask_anew(model, mask, retain, trained, spent, batch_statistics=initial is not None), mask)


def _corrected(
    model: nn.Module,
    trained: Trained,
    request: ForgetRequest,
    context: Context,
    retain: Batches,
    kind: str,
    steps: int,
    spent: Spent,
) -> nn.Module:
    """The network with the weights that training without D_f would have given, estimated on the runtime's device."""
    # records of earlier requests are in the split, but a model that was retrained since was not made of them
    runtime, recipe, total = context.runtime, as_recipe(trained.provenance.recipe), len(trained.split.retain)
    retain = _wide(retain, runtime)
    forget = dataclasses.replace(retain, rows=context.records.rows(request.record_ids))
    found = without_forget(
        runtime.place(model),
        list(forget.in_order()),
        list(retain.in_order()),
        removed=forget.count / total,
        damping=1 / max(training_time(recipe, total), 1e-12) + recipe.weight_decay,
        kind=kind,
        steps=steps,
    )
    spent.trained_records += found.trained_records
    return runtime.release(found.model)


def _mask_anew(
    model: nn.Module,
    mask: Mask,
    retain: Batches,
    trained: Trained,
    spent: Spent,
    *,
    batch_statistics: bool,
    within: Mask | None = None,
    sparsity: float | None = None,
) -> Mask:
    """What the rule of a mask makes of other weights, at its own sparsity or another."""
    rule = rule_of(mask)
    moved, _ = make_mask(
        model,
        rule,
        input_shape=retain.records.input_shape,
        batches=retain.in_order,
        batch_statistics=batch_statistics,
        seed=trained.provenance.seeds.get("pruning", 0),
        within=within,
        only=mask.alive,
        sparsity=rule.sparsity if sparsity is None else sparsity,
    )
    if get_criterion(rule.criterion).needs_data:
        spent.trained_records += retain.count
    return moved


def _measure_inputs_anew(model: nn.Module, trained: Trained, context: Context, split: Split) -> None:
    """Input constants that were measured on training records, measured on D_r: the scores would know D_f by them."""
    blueprint = Architecture.from_json(trained.provenance.architecture)
    anew = blueprint.renormalised(context.records, split.retain)
    if anew is not blueprint:
        fresh: Any = anew.build(0)
        own: Any = model
        own.normalise.load_state_dict(fresh.normalise.state_dict())


def _rounds_anew(model: nn.Module, mask: Mask, retain: Batches, trained: Trained, spent: Spent) -> Mask:
    """The rounds of pruning at initialisation once more, on D_r."""
    target = rule_of(mask).sparsity
    assert target is not None
    rounds = int(mask.provenance.details.get("options", {}).get("rounds", 0)) or 100
    within = None
    for number in range(1, rounds + 1):
        sparsity = target if number == rounds else 1 - (1 - target) ** (number / rounds)
        within = _mask_anew(
            model, mask, retain, trained, spent, batch_statistics=True, within=within, sparsity=sparsity
        )
        within.apply_(model)
    assert within is not None
    return _whole(within, mask)
