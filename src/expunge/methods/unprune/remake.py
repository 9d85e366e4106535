"""Making a mask again by the original's rule: from other weights, or from the initial weights on D_r."""

from __future__ import annotations

from typing import Any

from torch import nn

from expunge.core.mask import Mask
from expunge.data.batches import Batches
from expunge.models import Architecture
from expunge.sparsity import get_criterion, make_mask, recorded_schedule, rule_of
from expunge.sparsity.schedules.pruning import count_rounds

from .rescoring import check_schedule, complete_mask, recorded_score_records
from .run import Unpruning


def rescore_initial_weights(state: Unpruning) -> Mask:
    """Make the mask of a schedule that scores initial weights again, on D_r: that of retraining, bit for bit."""
    mask = state.original_mask
    retain = state.sample(recorded_score_records(mask, state.options.score_records))
    model = state.build_initial_network()
    _remeasure_normalisation(model, state)
    rounds = _count_rounds(mask)
    if rounds > 1:
        return _repeat_rounds(model, retain, state, rounds)
    return complete_mask(remake_mask(model, retain, state, batch_statistics=True), mask)


def remake_mask(
    model: nn.Module,
    retain: Batches,
    state: Unpruning,
    *,
    batch_statistics: bool = False,
    within: Mask | None = None,
    sparsity: float | None = None,
) -> Mask:
    """Prune other weights by the rule of the original's mask, to its sparsity or another.

    Args:
        model: the network with the weights to score; not modified.
        retain: the records that a data-driven criterion reads; they are counted.
        state: the run.
        batch_statistics: score with the BatchNorm statistics of the batches (at initialisation).
        within: an earlier mask: what it prunes stays pruned.
        sparsity: instead of the original's (for a step of an iterative schedule).
    """
    mask = state.original_mask
    rule = rule_of(mask)
    remade, _ = make_mask(
        model,
        rule,
        input_shape=state.input_shape,
        batches=retain.in_order,
        batch_statistics=batch_statistics,
        seed=state.original.provenance.seeds.get("pruning", 0),
        within=within,
        only=mask.kept,
        sparsity=rule.sparsity if sparsity is None else sparsity,
    )
    if get_criterion(rule.criterion).needs_data:
        state.task.trained_records += retain.count
    return remade


def _remeasure_normalisation(model: nn.Module, state: Unpruning) -> None:
    """Measure the normalisation statistics on D_r, if they were measured on training records: scores depend on them."""
    architecture = Architecture.from_json(state.original.provenance.architecture)
    remeasured = architecture.remeasure_normalisation(state.task.context.records, state.task.split.retain)
    if remeasured is not architecture:
        rebuilt: Any = remeasured.build_blank()
        target: Any = model
        target.normalise.load_state_dict(rebuilt.normalise.state_dict())


def _count_rounds(mask: Mask) -> int:
    """In how many rounds a mask of initial weights was made."""
    schedule = check_schedule(recorded_schedule(mask), mask.provenance.schedule)
    return count_rounds(schedule, rule_of(mask), mask.provenance.details.get("options") or {})


def _repeat_rounds(model: nn.Module, retain: Batches, state: Unpruning, rounds: int) -> Mask:
    """Repeat the rounds of pruning at initialisation on D_r."""
    mask = state.original_mask
    final_sparsity = rule_of(mask).sparsity
    assert final_sparsity is not None
    within = None
    for number in range(1, rounds + 1):
        sparsity = final_sparsity if number == rounds else 1 - (1 - final_sparsity) ** (number / rounds)
        within = remake_mask(model, retain, state, batch_statistics=True, within=within, sparsity=sparsity)
        within.apply_(model)
    assert within is not None
    return complete_mask(within, mask)
