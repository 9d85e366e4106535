"""influence: estimate the pruning scores without D_f, and keep the weights above a threshold."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from expunge.core.errors import MethodError
from expunge.core.mask import Mask
from expunge.core.trained import Trained
from expunge.data.batches import Batches
from expunge.methods.initial_weights import regrow
from expunge.methods.unprune.influence import estimate_without_forget, training_time
from expunge.methods.unprune.options import UnpruneOptions
from expunge.methods.unprune.rescoring import (
    check_schedule,
    check_scored,
    complete_mask,
    place_batches,
    recorded_score_records,
    scores_initial_weights,
)
from expunge.methods.unprune.rule import UnpruneRule, register_rule
from expunge.methods.unprune.run import Unpruning
from expunge.models import Architecture
from expunge.sparsity import Schedule, get_criterion, get_schedule, make_mask, recorded_schedule, rule_of
from expunge.sparsity.schedules.pruning import count_rounds
from expunge.training import checkpoint as checkpoints
from expunge.training.curvature import CURVATURES
from expunge.training.recipes import get_recipe


@register_rule(
    "influence",
    uses=(
        "rounds", "initial", "initial_hash", "final_epochs", "final_learning_rate", "score_records", "curvature",
        "curvature_steps",
    ),
)  # fmt: skip
class Influence(UnpruneRule):
    """Estimate the pruning scores without D_f, threshold them, unlearn; the network never gets denser.

    A mask made at initialisation depends on D_f only through its scores. They are recomputed on D_r, which is exact if
    the same records are sampled. Otherwise, the dense weights from before pruning are corrected by influence
    (`expunge.methods.unprune.influence`) or unlearned by the inner method (`curvature=method`), and scored again.
    """

    def check_state(self, options: UnpruneOptions, trained: Trained) -> None:
        """See `UnpruneRule.check_state`."""
        check_scored(trained)

    def needed_curvature(self, options: UnpruneOptions, schedule: Schedule | None) -> str | None:
        """See `UnpruneRule.needed_curvature`: none if the rule recomputes scores of the initial weights."""
        at_start = schedule is not None and schedule.scores_initial_weights
        return options.curvature if options.curvature in CURVATURES and not at_start else None

    def check_pruning(self, schedule: str, keep_weights: bool) -> None:
        """See `UnpruneRule.check_pruning`."""
        found = check_schedule(get_schedule(schedule), schedule)
        if found.keeps_scored_weights and not keep_weights:
            raise MethodError(
                "the influence rule needs the weights from before pruning, which are not stored",
                where="sparsity.keep_weights",
                hint="set sparsity.keep_weights=true",
            )

    def run(self, state: Unpruning) -> None:
        """See `UnpruneRule.run`."""
        mask = state.original_mask
        new_mask = rescore(state)
        model = regrow(state.original.model, mask, new_mask, state.make_initial_values())
        new_mask.apply_(model)
        state.begin_round(model, new_mask)
        for number in range(state.options.rounds):
            state.round = number
            state.begin_round(state.current.model, state.mask)
            state.unlearn()


def rescore(state: Unpruning) -> Mask:
    """Estimate the mask that training and pruning without D_f would have produced.

    Raises:
        MethodError: the weights from before pruning are not stored, or the schedule ranked weights that were already
            sparse.
    """
    mask, trained, options = state.original_mask, state.original, state.options
    if scores_initial_weights(mask):
        retain = state.sample(recorded_score_records(mask, options.score_records))
        model = state.build_initial_network()
        _remeasure_normalisation(model, state)
        rounds = _count_rounds(mask)
        if rounds > 1:
            return _repeat_rounds(model, retain, state, rounds)
        return complete_mask(_remake_mask(model, retain, state, batch_statistics=True), mask)
    check_scored(trained)
    retain = state.sample(options.score_records)
    model = Architecture.from_json(trained.provenance.architecture).build(0)
    checkpoints.load_state(model, trained.state["pruning_weights"])
    if options.curvature == "method":
        dense = dataclasses.replace(trained, model=model, mask=None, state={})
        context = state.task.context.for_part("dense")
        model = state.task.run(options.inner_method(), dense, context).trained.model
    else:
        model = _correct_by_influence(model, retain, state)
    return complete_mask(_remake_mask(model, retain, state, batch_statistics=False), mask)


def _correct_by_influence(model: nn.Module, retain: Batches, state: Unpruning) -> nn.Module:
    """Return the network with the estimated weights of training without D_f; computed on the runtime's device."""
    task, trained = state.task, state.original
    # the number of records that the model was trained on: not those of earlier requests, if it was retrained since
    runtime, recipe, total = task.context.runtime, get_recipe(trained.provenance.recipe), len(trained.split.retain)
    retain = place_batches(retain, runtime)
    forget = dataclasses.replace(retain, rows=task.forget_rows)
    estimate = estimate_without_forget(
        runtime.place(model),
        list(forget.in_order()),
        list(retain.in_order()),
        removed=forget.count / total,
        damping=1 / max(training_time(recipe, total), 1e-12) + recipe.weight_decay,
        matrix_type=state.options.curvature,
        steps=state.options.curvature_steps,
    )
    task.trained_records += estimate.trained_records
    return runtime.release(estimate.model)


def _remake_mask(
    model: nn.Module,
    retain: Batches,
    state: Unpruning,
    *,
    batch_statistics: bool,
    within: Mask | None = None,
    sparsity: float | None = None,
) -> Mask:
    """Prune other weights by the rule of the original's mask, to its sparsity or another."""
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
        rebuilt: Any = remeasured.build(0)
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
        within = _remake_mask(model, retain, state, batch_statistics=True, within=within, sparsity=sparsity)
        within.apply_(model)
    assert within is not None
    return complete_mask(within, mask)
