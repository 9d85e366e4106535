"""The parts of un-pruning that read records: scores by gradient, re-pruning, thresholding new scores."""

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
from expunge.training.batchnorm import join_single_records
from expunge.training.recipes import get_recipe
from expunge.training.runtime import Runtime

from .influence import estimate_without_forget, training_time
from .initial_weights import regrow

#: Schedules that compute their final scores from the weights at the end of dense training.
SCORED_AT_THE_END = ("omp", "one-shot", "soft-filter")
#: Smallest batch for gradients and curvature products: in evaluation mode, the batch size only affects the speed.
MIN_BATCH = 256


@dataclasses.dataclass
class CostTracker:
    """The cost of a composite method so far, and the state that its parts rewrote."""

    trained_records: int = 0
    forward_records: int = 0
    seconds: float = 0.0
    rewrote: set[str] = dataclasses.field(default_factory=set)
    history: list[Any] = dataclasses.field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """Add the cost and the history of an inner method."""
        self.trained_records += outcome.cost.trained_records
        self.forward_records += outcome.cost.forward_records
        self.seconds += outcome.cost.seconds
        self.rewrote |= set(outcome.rewrote)
        self.history.extend(outcome.history)

    @contextlib.contextmanager
    def clock(self) -> Iterator[None]:
        """Add the seconds of a block."""
        start_time = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - start_time


def sample(trained: Trained, context: Context, ids: Ids, limit: int, runtime: Runtime | None = None) -> Batches:
    """Sample at most `limit` of the records by hash, as pruning samples the records for its scores.

    With a runtime, the batches are larger and on its device.
    """
    records = context.records
    rows = records.rows(ids)
    seed = derive(trained.provenance.seeds.get("pruning", 0), "score")
    chosen = rows[epoch_order(records.keys[rows], seed, 0)[:limit]]
    batches = Batches(records, chosen, batch_size=get_recipe(trained.provenance.recipe).batch_size)
    return join_single_records(trained.model, batches if runtime is None else _enlarge(batches, runtime))


def _enlarge(batches: Batches, runtime: Runtime) -> Batches:
    """Return the same records in larger batches on the runtime's device."""
    size = max(batches.batch_size, MIN_BATCH)
    placement: dict[str, Any] = {"device": runtime.torch_device, "channels_last": runtime.channels_last}
    return dataclasses.replace(batches, batch_size=size, **placement)


def _score_records(mask: Mask, limit: int) -> int:
    """Return the number of records that pruning scored on, or `limit` if it is not recorded."""
    return int(mask.provenance.details.get("score_records") or limit)


def score_by_gradient(
    current: Trained,
    values: Mapping[str, torch.Tensor],
    retain: Ids,
    context: Context,
    limit: int,
    tracker: CostTracker,
) -> dict[str, torch.Tensor]:
    """Score weights by |dL_r/dw|, as RigL (Evci et al. 2020) does, with pruned weights at 0 and in evaluation mode.

    A pruned channel at 0 before a ReLU has no gradient. So channels are scored with the pruned ones at the `values`
    that they would be regrown with, and BatchNorm uses the statistics of the batches: the running statistics of a
    pruned channel are those of a constant 0.
    """
    mask = current.mask
    assert mask is not None
    runtime = context.runtime
    batches = sample(current, context, retain, limit, runtime)
    channels = mask.provenance.granularity == "filter"
    all_kept = Mask({name: torch.ones_like(kept) for name, kept in mask.kept.items()}, mask.provenance)
    model = regrow(current.model, mask, all_kept, values) if channels else clone_model(current.model)
    gradients = curvature.gradient(
        runtime.place(model), batches.in_order(), names=list(mask.kept), batch_statistics=channels
    )
    tracker.trained_records += batches.count
    return {name: gradient.abs().cpu() for name, gradient in gradients.items()}


def re_prune(
    current: Trained, original: Mask, split: Split, context: Context, limit: int, tracker: CostTracker
) -> Mask:
    """Prune by the original's rule to its sparsity, among the weights that are kept now. Only D_r is read."""
    rule = rule_of(original)
    batches = None
    if get_criterion(rule.criterion).needs_data:
        scored_on = sample(current, context, split.retain, _score_records(original, limit))
        batches = scored_on.in_order
        tracker.trained_records += scored_on.count
    mask, _ = make_mask(
        current.model,
        rule,
        input_shape=context.records.input_shape,
        batches=batches,
        seed=current.provenance.seeds.get("pruning", 0),
        within=current.mask,
        only=original.kept,
        sparsity=rule.sparsity,
    )
    return _complete(mask, original)


def _complete(mask: Mask, original: Mask) -> Mask:
    """Add the original's provenance, and its tensors that no rule ranks (masked biases, for example)."""
    unranked = {name: kept for name, kept in original.kept.items() if name not in mask.kept}
    return Mask({**unranked, **mask.kept}, original.provenance)


def check_channels(mask: Mask, model: nn.Module, architecture: Mapping[str, Any]) -> None:
    """Raise MaskError if a mask with the granularity `filter` does not name exactly the tensors of its channels."""
    if mask.provenance.granularity != "filter" or not mask.kept:
        return
    channels = find_channels(model, tuple(architecture["input_shape"]))
    all_units = np.ones(channels.units, dtype=bool)
    is_ranked = np.zeros(channels.units, dtype=bool)
    for units in channels.pools(tuple(mask.provenance.layers)).values():
        is_ranked[units] = True
    expected = set(expand_units(channels, all_units, is_ranked))
    differences = sorted(expected.symmetric_difference(mask.kept))
    if differences:
        raise MaskError(
            f"the mask is declared to prune channels of {', '.join(mask.provenance.layers)} layers, but "
            + ("does not name" if differences[0] in expected else "names")
            + f" {differences[0]}",
            where="granularity filter",
            hint="a channel has rows, biases, BatchNorm scales and shifts; otherwise declare granularity=weight",
        )


def check_scored(trained: Trained) -> None:
    """Raise MethodError if the model does not have the dense weights that the influence rule scores again.

    The rule estimates these weights as training without D_f would have left them. For a mask made at initialisation,
    the initial weights are enough.
    """
    assert trained.mask is not None
    check_schedule(trained.mask.provenance.schedule)
    if trained.mask.provenance.schedule != "at-init" and "pruning_weights" not in trained.state:
        raise MethodError(
            "the influence rule needs the weights from before pruning, which are not stored",
            where="state pruning_weights",
            hint="prune with keep_weights=True, or use rule=magnitude or gradient",
        )


def check_schedule(schedule: str) -> None:
    """Raise MethodError if a schedule ranked weights that were already sparse."""
    if schedule not in (*SCORED_AT_THE_END, "at-init"):
        raise MethodError(
            f"the schedule {schedule} ranked weights that were already sparse; the influence rule needs scores of "
            "dense weights",
            where="Un-prune.rule",
            hint="use rule=magnitude or gradient, or prune with omp, one-shot, soft-filter or at-init",
        )


def rethreshold_mask(
    trained: Trained,
    request: ForgetRequest,
    context: Context,
    *,
    initial: Callable[[Trained], nn.Module] | None,
    records: int,
    matrix_type: str,
    steps: int,
    unlearn: Callable[[Trained], Outcome],
    tracker: CostTracker,
) -> Mask:
    """Estimate the mask that training and pruning without D_f would have produced.

    A mask made at initialisation depends on D_f only through its scores. They are recomputed on D_r, which is exact if
    the same records are sampled. Otherwise, the dense weights from before pruning are corrected by influence
    (`expunge.methods.unprune.influence`) or unlearned by the inner method (`matrix_type="method"`), and scored again.

    Args:
        trained: the original, pruned model.
        request: the records to forget.
        context: records, runtime, seed.
        initial: builds the network with the initial weights; only for masks made at initialisation.
        records: maximum number of records for scores, gradients and curvature.
        matrix_type: `gauss-newton`, `hessian`, `none`, or `method`.
        steps: maximum number of products with the curvature.
        unlearn: runs the inner method on a dense model.
        tracker: the cost is added to it.

    Raises:
        MethodError: the weights from before pruning are not stored, or the schedule ranked weights that were already
            sparse.
    """
    mask = trained.mask
    assert mask is not None
    split = request.apply(trained.split)
    retain = sample(trained, context, split.retain, _score_records(mask, records) if initial else records)
    if initial is not None:
        model = initial(trained)
        _remeasure_normalisation(model, trained, context, split)
        if (
            mask.provenance.details.get("options", {}).get("rounds", 0) not in (0, 1)
            or mask.provenance.criterion == "SynFlow"
        ):
            return _repeat_rounds(model, mask, retain, trained, tracker)
    else:
        check_scored(trained)
        model = Architecture.from_json(trained.provenance.architecture).build(0)
        checkpoints.load_state(model, trained.state["pruning_weights"])
        if matrix_type == "method":
            outcome = unlearn(dataclasses.replace(trained, model=model, mask=None, state={}))
            model = outcome.trained.model
            tracker.trained_records += outcome.cost.trained_records
            tracker.forward_records += outcome.cost.forward_records
        else:
            model = _correct_by_influence(model, trained, request, context, retain, matrix_type, steps, tracker)
    return _complete(_remake_mask(model, mask, retain, trained, tracker, batch_statistics=initial is not None), mask)


def _correct_by_influence(
    model: nn.Module,
    trained: Trained,
    request: ForgetRequest,
    context: Context,
    retain: Batches,
    matrix_type: str,
    steps: int,
    tracker: CostTracker,
) -> nn.Module:
    """Return the network with the estimated weights of training without D_f; computed on the runtime's device."""
    # the number of records that the model was trained on: not those of earlier requests, if it was retrained since
    runtime, recipe, total = context.runtime, get_recipe(trained.provenance.recipe), len(trained.split.retain)
    retain = _enlarge(retain, runtime)
    forget = dataclasses.replace(retain, rows=context.records.rows(request.record_ids))
    estimate = estimate_without_forget(
        runtime.place(model),
        list(forget.in_order()),
        list(retain.in_order()),
        removed=forget.count / total,
        damping=1 / max(training_time(recipe, total), 1e-12) + recipe.weight_decay,
        matrix_type=matrix_type,
        steps=steps,
    )
    tracker.trained_records += estimate.trained_records
    return runtime.release(estimate.model)


def _remake_mask(
    model: nn.Module,
    mask: Mask,
    retain: Batches,
    trained: Trained,
    tracker: CostTracker,
    *,
    batch_statistics: bool,
    within: Mask | None = None,
    sparsity: float | None = None,
) -> Mask:
    """Prune other weights by the rule of a mask, to its sparsity or another."""
    rule = rule_of(mask)
    remade, _ = make_mask(
        model,
        rule,
        input_shape=retain.records.input_shape,
        batches=retain.in_order,
        batch_statistics=batch_statistics,
        seed=trained.provenance.seeds.get("pruning", 0),
        within=within,
        only=mask.kept,
        sparsity=rule.sparsity if sparsity is None else sparsity,
    )
    if get_criterion(rule.criterion).needs_data:
        tracker.trained_records += retain.count
    return remade


def _remeasure_normalisation(model: nn.Module, trained: Trained, context: Context, split: Split) -> None:
    """Measure the normalisation statistics on D_r, if they were measured on training records: scores depend on them."""
    architecture = Architecture.from_json(trained.provenance.architecture)
    remeasured = architecture.remeasure_normalisation(context.records, split.retain)
    if remeasured is not architecture:
        rebuilt: Any = remeasured.build(0)
        target: Any = model
        target.normalise.load_state_dict(rebuilt.normalise.state_dict())


def _repeat_rounds(model: nn.Module, mask: Mask, retain: Batches, trained: Trained, tracker: CostTracker) -> Mask:
    """Repeat the rounds of pruning at initialisation on D_r."""
    final_sparsity = rule_of(mask).sparsity
    assert final_sparsity is not None
    rounds = int(mask.provenance.details.get("options", {}).get("rounds", 0)) or 100
    within = None
    for number in range(1, rounds + 1):
        sparsity = final_sparsity if number == rounds else 1 - (1 - final_sparsity) ** (number / rounds)
        within = _remake_mask(
            model, mask, retain, trained, tracker, batch_statistics=True, within=within, sparsity=sparsity
        )
        within.apply_(model)
    assert within is not None
    return _complete(within, mask)
