"""Whether a rule can be applied to a network at all, and to how much of it: said before the network is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import nn

from expunge.core.errors import MaskError
from expunge.core.mask import Mask, MaskProvenance
from expunge.sparsity.channels.layers import prunable
from expunge.sparsity.criteria.registry import Material, get_criterion, score

from .allocation import check_layers, pruned_count
from .consistency import ranked_counts
from .granularity import Ranking, get_granularity
from .rule import Rule


@dataclasses.dataclass(frozen=True)
class Contest:
    """What would compete.

    Attributes:
        kept, total: how many would stay, of how many.
        what: `weights` or `coupled channels`.
        layers: of how many layers (or groups of layers whose channels are coupled).
    """

    kept: int
    total: int
    what: str
    layers: int


def check_criterion(rule: Rule) -> None:
    """Raise MaskError where a criterion of channels is to rank single weights."""
    if get_criterion(rule.criterion).kind == "channel" and rule.granularity != "filter":
        raise MaskError(
            f"the criterion {rule.criterion} scores channels, not single weights",
            where=f"granularity {rule.granularity}",
            hint="use granularity=filter, or a criterion of single weights such as magnitude",
        )


def contest(rule: Rule, model: nn.Module, input_shape: Sequence[int]) -> Contest:
    """Count what a rule would keep of a network, whatever its weights will be.

    Criteria of single weights are stood in for by equal scores; those of channels read the network as it is, which says
    whether there is a score for every channel. With the scopes `layer` and `erk`, and with patterns, the counts of
    every layer are known beforehand; with `global` only their sum.

    Raises:
        MaskError: criterion and granularity do not go together, there is nothing to prune, a channel has no score, or a
            layer would lose every weight.
        ConfigError: a name is unknown.
    """
    rule = rule.checked()
    check_criterion(rule)
    kind, criterion = get_granularity(rule.granularity), get_criterion(rule.criterion)
    weights = prunable(model, rule.layers)
    if rule.granularity == "weight" and rule.scope == "global":  # only the sum is known; nothing need be sorted
        total = sum(weight.numel() for weight in weights.values())
        return Contest(total - pruned_count(total, kind.sparsity(rule.sparsity)), total, "weights", len(weights))
    material = Material(model, weights, None, tuple(input_shape))
    scores = {name: torch.zeros(weight.shape) for name, weight in weights.items()}
    if criterion.kind == "channel":
        scores = score(rule.criterion, material)
    alive = kind.select(Ranking(criterion, scores, material, rule.layers), kind.sparsity(rule.sparsity), rule.scope)
    if rule.scope != "global" or ":" in rule.granularity:
        check_layers({name: bits for name, bits in alive.items() if bits.dim() > 1}, kind.sparsity(rule.sparsity))
    mask = Mask(alive, MaskProvenance(rule.criterion, granularity=rule.granularity))
    counts = ranked_counts(mask, model, rule.layers, input_shape)
    dead, total = (sum(column) for column in zip(*counts.values(), strict=True))
    what = "coupled channels" if rule.granularity == "filter" else "weights"
    return Contest(total - dead, total, what, len(counts))
