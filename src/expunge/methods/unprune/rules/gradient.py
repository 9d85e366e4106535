"""gradient: regrow the pruned weights with the largest gradients on D_r, as in RigL."""

from __future__ import annotations

import torch

from expunge.core.errors import MethodError
from expunge.core.mask import Mask
from expunge.core.trained import Trained, clone_model
from expunge.methods.initial_weights import regrow
from expunge.methods.unprune.options import UnpruneOptions
from expunge.methods.unprune.rule import GrowthRule, register_rule
from expunge.methods.unprune.run import Unpruning
from expunge.sparsity import recorded_granularity
from expunge.sparsity.criteria.registry import Scores
from expunge.training import curvature


@register_rule(
    "gradient",
    uses=(
        "growth", "growth_of", "rounds", "reprune", "reinitialise", "initial", "initial_hash", "final_epochs",
        "final_learning_rate", "re_estimate", "score_records",
    ),
)  # fmt: skip
class Gradient(GrowthRule):
    """Regrow the pruned weights with the largest gradients on D_r, unlearn, re-prune (as in RigL)."""

    reduce = "sum"

    def check_state(self, options: UnpruneOptions, trained: Trained) -> None:
        """See `UnpruneRule.check_state`."""
        assert trained.mask is not None
        if options.initial == "zero" and recorded_granularity(trained.mask.provenance).whole_channels:
            raise MethodError(
                "the gradient rule cannot rank channels that are re-initialised to zero, because their gradients are 0",
                where="Un-prune.initial",
                hint="use initial=original or random",
            )

    def score(self, state: Unpruning, values: Scores) -> Scores:
        """Score weights by |dL_r/dw|, as RigL (Evci et al. 2020) does, with pruned weights at 0, in evaluation mode.

        A pruned channel at 0 before a ReLU has no gradient. So channels are scored with the pruned ones at the `values`
        that they would be regrown with, and BatchNorm uses the statistics of the batches: the running statistics of a
        pruned channel are those of a constant 0.
        """
        mask, current, runtime = state.mask, state.current, state.task.context.runtime
        batches = state.sample(state.options.score_records, on_device=True)
        channels = recorded_granularity(mask.provenance).whole_channels
        all_kept = Mask({name: torch.ones_like(kept) for name, kept in mask.kept.items()}, mask.provenance)
        model = regrow(current.model, mask, all_kept, values) if channels else clone_model(current.model)
        gradients = curvature.gradient(
            runtime.place(model), batches.in_order(), names=list(mask.kept), batch_statistics=channels
        )
        state.task.trained_records += batches.count
        return {name: gradient.abs().cpu() for name, gradient in gradients.items()}
