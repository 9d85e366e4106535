"""Dry run: whether a rule can be applied to a network, and how many weights it would keep, before any training."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import nn

from expunge.core.errors import MaskError
from expunge.core.mask import Mask, MaskProvenance
from expunge.sparsity.channels.layers import prunable_weights
from expunge.sparsity.criteria.registry import ScoringContext, compute_scores, get_criterion

from .allocation import check_no_empty_layer, pruned_count
from .consistency import count_ranked
from .granularity import Ranking, get_granularity
from .rule import Rule


@dataclasses.dataclass(frozen=True)
class DryRun:
    """How many weights, or coupled channels, a rule would keep.

    Attributes:
        kept: how many would be kept.
        total: how many would be ranked.
        unit: what is counted, `weights` or `coupled channels`.
        layers: number of layers (or of groups of layers whose channels are coupled) that they lie in.
    """

    kept: int
    total: int
    unit: str
    layers: int


def check_criterion_fits(rule: Rule) -> None:
    """Raise MaskError if a criterion that scores channels would have to rank single weights."""
    if get_criterion(rule.criterion).level == "channel" and rule.granularity != "filter":
        raise MaskError(
            f"the criterion {rule.criterion} scores channels, not single weights",
            where=f"granularity {rule.granularity}",
            hint="use granularity=filter, or a criterion of single weights such as magnitude",
        )


def dry_run_rule(rule: Rule, model: nn.Module, input_shape: Sequence[int]) -> DryRun:
    """Count what a rule would keep of a network, whatever values its weights will have.

    For criteria that score single weights, equal scores are used. Criteria that score channels read the network as it
    is, which shows whether every channel has a score. With the scopes `layer` and `erk`, and with patterns, the counts
    of every layer are known beforehand; with `global` only their sum is.

    Args:
        rule: criterion, granularity, scope, layers, sparsity.
        model: the network; not modified.
        input_shape: shape of one record.

    Raises:
        MaskError: criterion and granularity do not fit, there is nothing to prune, a channel has no score, or a layer
            would lose every weight.
        ConfigError: unknown name.
    """
    rule = rule.validate()
    check_criterion_fits(rule)
    granularity, criterion = get_granularity(rule.granularity), get_criterion(rule.criterion)
    weights = prunable_weights(model, rule.layers)
    if rule.granularity == "weight" and rule.scope == "global":  # only the sum is known, so nothing has to be sorted
        total = sum(weight.numel() for weight in weights.values())
        return DryRun(total - pruned_count(total, granularity.sparsity(rule.sparsity)), total, "weights", len(weights))
    context = ScoringContext(model, weights, None, tuple(input_shape))
    scores = {name: torch.zeros(weight.shape) for name, weight in weights.items()}
    if criterion.level == "channel":
        scores = compute_scores(rule.criterion, context)
    ranking = Ranking(criterion, scores, context, rule.layers)
    kept = granularity.select(ranking, granularity.sparsity(rule.sparsity), rule.scope)
    if rule.scope != "global" or ":" in rule.granularity:
        check_no_empty_layer(
            {name: bits for name, bits in kept.items() if bits.dim() > 1}, granularity.sparsity(rule.sparsity)
        )
    mask = Mask(kept, MaskProvenance(rule.criterion, granularity=rule.granularity))
    counts = count_ranked(mask, model, rule.layers, input_shape)
    pruned, total = (sum(column) for column in zip(*counts.values(), strict=True))
    unit = "coupled channels" if rule.granularity == "filter" else "weights"
    return DryRun(total - pruned, total, unit, len(counts))
