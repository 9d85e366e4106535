"""influence: estimate the pruning scores without D_f, and keep the weights above a threshold."""

from __future__ import annotations

import dataclasses

from torch import nn

from expunge.core import early_checkpoints
from expunge.core.errors import MethodError
from expunge.core.mask import Mask
from expunge.core.trained import Trained
from expunge.data.batches import Batches
from expunge.methods.initial_weights import regrow
from expunge.methods.unprune.influence import check_optimiser, estimate_without_forget, training_time
from expunge.methods.unprune.options import UnpruneOptions
from expunge.methods.unprune.remake import remake_mask, rescore_initial_weights
from expunge.methods.unprune.rescoring import (
    check_schedule,
    check_scored,
    complete_mask,
    place_batches,
    scores_initial_weights,
)
from expunge.methods.unprune.rule import UnpruneRule, register_rule
from expunge.methods.unprune.run import Unpruning
from expunge.models import Architecture
from expunge.sparsity import Schedule, get_schedule
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
        """See `UnpruneRule.check_state`.

        Raises:
            MethodError: the estimate needs the training time of SGD, and the original had another optimiser.
        """
        check_scored(trained)
        mask = trained.mask
        if mask is not None and options.curvature != "method" and not scores_initial_weights(mask):
            check_optimiser(get_recipe(trained.provenance.recipe))

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
                hint="prune with keep_weights (sparsity.keep_weights=true in a configuration)",
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
        return rescore_initial_weights(state)
    check_scored(trained)
    retain = state.sample(options.score_records)
    model = Architecture.from_json(trained.provenance.architecture).build_blank()
    checkpoints.load_state(model, trained.state["pruning_weights"])
    if options.curvature == "method":
        kept = {name: tensors for name, tensors in trained.state.items() if name == early_checkpoints.STATE}
        dense = dataclasses.replace(trained, model=model, mask=None, state=kept)
        context = state.task.context.for_part("dense")
        model = state.task.run(options.inner_method(), dense, context).trained.model
    else:
        model = _correct_by_influence(model, retain, state)
    return complete_mask(remake_mask(model, retain, state), mask)


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
