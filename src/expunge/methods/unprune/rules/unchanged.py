"""unchanged: only the inner method, for comparison."""

from __future__ import annotations

from expunge.methods.unprune.rule import UnpruneRule, register_rule
from expunge.methods.unprune.run import Unpruning


@register_rule("unchanged", uses=())
class Unchanged(UnpruneRule):
    """Do not change the mask: only the inner method, for comparison."""

    changes_mask = False

    def run(self, state: Unpruning) -> None:
        """See `UnpruneRule.run`."""
        state.unlearn()
