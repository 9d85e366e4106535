"""The options of un-pruning, with the checks that do not depend on the rule."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from expunge.core.errors import MethodError, unknown_name_hint
from expunge.core.reading.limits import ROUNDS
from expunge.methods.base import Method
from expunge.methods.composition.then import Then
from expunge.methods.options import require_range
from expunge.methods.registry import get_method, method_class
from expunge.methods.replay import PREFIXES
from expunge.training.curvature import CURVATURES

from .growth import GROWTH_OF

INITIAL = ("original", "random", "zero")
REPRUNE = ("once", "each")
REINITIALISE = ("pruned", "grown")
REPLAY_WEIGHTS = ("replayed", "mixed", "shifted")


@dataclasses.dataclass(frozen=True)
class UnpruneOptions(Method):
    """The options of un-pruning.

    Attributes:
        method: name of the inner method, which unlearns.
        method_options: its options.
        rule: `magnitude` (regrow the pruned weights that are largest after re-initialisation), `gradient` (those with
            the largest gradients on D_r), `influence` (estimate the pruning scores without D_f and threshold them; the
            network never gets denser), `replay` (run the first epochs of training again without D_f, add the difference
            to the weights that were pruned, and prune them again), `random` or `dense` (controls: regrow random or all
            pruned weights), or `unchanged` (do not change the mask). Other rules can be registered (docs/sparsity.md).
            An option that the rule does not use is an error; cells of a plan drop it.
        growth: fraction of weights (or channels) to regrow in a round, in [0, 1].
        growth_of: the weights that `growth` is a fraction of: `pruned`, `all`, or `kept`.
        rounds: number of rounds.
        reprune: re-prune after `each` round, or `once` after the last.
        reinitialise: in every round, set all `pruned` weights to their initial value; or, with `grown`, only those that
            were never regrown, while the others start from their last value.
        initial: the initial value: `original` (from the recorded seed or the state `initial_weights`, checked by
            hash), `random` (newly drawn), or `zero`.
        initial_hash: expected hash of the original's initial weights, instead of the recorded one.
        final_epochs, final_learning_rate: fine-tuning on D_r with the final mask.
        re_estimate: maximum number of records of D_r for re-estimating the BatchNorm buffers after the last re-pruning
            (forward only). The buffers that the inner method leaves are those of the denser network, and do not fit the
            pruned one. With 0, with final fine-tuning, or if the inner method keeps buffers frozen, they are not
            re-estimated. The replay rule re-estimates them before it scores and before the inner method; with 0, they
            are those of the replayed epochs.
        score_records: number of records of D_r for gradients and curvature.
        curvature: how the influence rule estimates the weights without D_f: `gauss-newton`, `hessian`, `none` (one long
            gradient step), or `method` (run the inner method on the dense weights from before pruning; this doubles its
            cost, and does not assume that the change is small).
        curvature_steps: maximum number of products with the curvature.
        prefix_epochs: of the replay rule: k, the epochs that are run again; an integer, or a fraction of the recipe's
            epochs below 1. Of a schedule that prunes in rounds, also the epochs of each round.
        prefix: of the replay rule: where the first epochs on D come from: `recorded` (stored by
            `training.keep_epochs`; recomputed if they were not), `recomputed`, or `compressed` (both runs follow the
            recipe squeezed into k epochs).
        scale: of the replay rule: the factor of the difference that is added.
        replay_weights: of the replay rule: the weights under the new mask: `replayed` (those that it was made from),
            `mixed` (the original's sparse weights; regrown ones are replayed), or `shifted` (the original's sparse
            weights plus the replayed difference; regrown ones are replayed).
    """

    method: str = "FT"
    method_options: Mapping[str, Any] | None = None
    rule: str = "magnitude"
    growth: float = 0.2
    growth_of: str = "pruned"
    rounds: int = 1
    reprune: str = "once"
    reinitialise: str = "pruned"
    initial: str = "original"
    initial_hash: str = ""
    final_epochs: int = 0
    final_learning_rate: float = 0.01
    re_estimate: int = 2048
    score_records: int = 1024
    curvature: str = "gauss-newton"
    curvature_steps: int = 10
    prefix_epochs: float = 0.2
    prefix: str = "recorded"
    scale: float = 1.0
    replay_weights: str = "replayed"

    def __post_init__(self) -> None:
        require_range(
            "Un-prune",
            growth=(self.growth, 0 <= self.growth <= 1),
            rounds=(self.rounds, 1 <= self.rounds <= ROUNDS),
            final_epochs=(self.final_epochs, self.final_epochs >= 0),
            final_learning_rate=(self.final_learning_rate, 0 <= self.final_learning_rate < float("inf")),
            re_estimate=(self.re_estimate, self.re_estimate == 0 or self.re_estimate >= 2),
            score_records=(self.score_records, self.score_records >= 1),
            curvature_steps=(self.curvature_steps, self.curvature_steps >= 1),
            prefix_epochs=(self.prefix_epochs, 0 < self.prefix_epochs < float("inf")),
            scale=(self.scale, abs(self.scale) < float("inf")),
        )
        choices: dict[str, tuple[str, tuple[str, ...]]] = {
            "growth_of": (self.growth_of, GROWTH_OF),
            "reprune": (self.reprune, REPRUNE),
            "reinitialise": (self.reinitialise, REINITIALISE),
            "initial": (self.initial, INITIAL),
            "curvature": (self.curvature, ("none", "method", *CURVATURES)),
            "prefix": (self.prefix, tuple(PREFIXES)),
            "replay_weights": (self.replay_weights, REPLAY_WEIGHTS),
        }
        for option, (value, known) in choices.items():
            if value not in known:
                hint = unknown_name_hint(str(value), known)
                raise MethodError(f"unknown {option} {value!r}", where=f"Un-prune.{option}", hint=hint)
        if issubclass(method_class(self.method), UnpruneOptions):
            raise MethodError("Un-prune cannot be its own inner method", where="Un-prune.method")
        inner = self.inner_method()
        if isinstance(inner, Then) and any(isinstance(step, UnpruneOptions) for step in inner.list_methods()):
            raise MethodError("Un-prune cannot be a step of its own inner method", where="Un-prune.method_options")

    def inner_method(self) -> Method:
        """Return the inner method, which unlearns."""
        return get_method(self.method, **(self.method_options or {}))
