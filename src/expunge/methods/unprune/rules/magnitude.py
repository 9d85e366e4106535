"""magnitude: regrow the pruned weights that are largest after re-initialisation [Xiao2025]."""

from __future__ import annotations

from expunge.core.errors import MethodError
from expunge.methods.unprune.options import UnpruneOptions
from expunge.methods.unprune.rule import GrowthRule, register_rule
from expunge.methods.unprune.run import Unpruning
from expunge.sparsity.criteria.registry import Scores


@register_rule(
    "magnitude",
    uses=(
        "growth", "growth_of", "rounds", "reprune", "reinitialise", "initial", "initial_hash", "final_epochs",
        "final_learning_rate", "re_estimate", "score_records",
    ),
)  # fmt: skip
class Magnitude(GrowthRule):
    """Regrow the pruned weights that are largest after re-initialisation, unlearn, re-prune ([Xiao2025])."""

    def check_options(self, options: UnpruneOptions) -> None:
        """See `UnpruneRule.check_options`."""
        if options.initial == "zero" and options.growth > 0:
            raise MethodError(
                "the magnitude rule cannot rank weights that are all re-initialised to zero",
                where="Un-prune.initial",
                hint="use initial=original or random, or another rule",
            )

    def score(self, state: Unpruning, values: Scores) -> Scores:
        """See `GrowthRule.score`."""
        return {name: tensor.abs() for name, tensor in values.items()}
