"""dense: regrow all pruned weights, a control."""

from __future__ import annotations

from expunge.core.mask import Mask
from expunge.methods.unprune.growth import grow
from expunge.methods.unprune.rule import GrowthRule, register_rule
from expunge.methods.unprune.run import Unpruning
from expunge.sparsity.criteria.registry import Scores


@register_rule(
    "dense",
    uses=(
        "rounds", "reprune", "reinitialise", "initial", "initial_hash", "final_epochs", "final_learning_rate",
        "re_estimate", "score_records",
    ),
)  # fmt: skip
class Dense(GrowthRule):
    """Regrow all pruned weights, unlearn, re-prune: a control."""

    def grow(self, state: Unpruning, values: Scores) -> Mask:
        """See `GrowthRule.grow`."""
        return grow(state.mask, self.score(state, values), 1.0, state.current.model, state.input_shape)

    def score(self, state: Unpruning, values: Scores) -> Scores:
        """See `GrowthRule.score`."""
        return {name: tensor.abs() for name, tensor in values.items()}
