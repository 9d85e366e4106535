"""random: regrow random pruned weights, a control."""

from __future__ import annotations

import torch

from expunge.core.seeds import derive
from expunge.methods.unprune.rule import GrowthRule, register_rule
from expunge.methods.unprune.run import Unpruning
from expunge.sparsity.criteria.registry import Scores


@register_rule(
    "random",
    uses=(
        "growth", "growth_of", "rounds", "reprune", "reinitialise", "initial", "initial_hash", "final_epochs",
        "final_learning_rate", "re_estimate", "score_records",
    ),
)  # fmt: skip
class Random(GrowthRule):
    """Regrow random pruned weights, unlearn, re-prune: a control."""

    def score(self, state: Unpruning, values: Scores) -> Scores:
        """See `GrowthRule.score`."""
        generator = torch.Generator().manual_seed(derive(state.task.context.seed, "un-prune", "random", state.round))
        return {name: torch.rand(kept.shape, generator=generator) for name, kept in state.mask.kept.items()}
