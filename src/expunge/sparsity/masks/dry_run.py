"""Dry run: whether a rule can be applied to a network, and how many weights it would keep, before any training."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import nn

from expunge.sparsity.channels.layers import prunable_weights
from expunge.sparsity.criteria.registry import ScoringContext, compute_scores, get_criterion

from .allocation import check_no_empty_layer, get_scope, pruned_count
from .granularity import Ranking, get_granularity, select_kept
from .rule import Rule


@dataclasses.dataclass(frozen=True)
class DryRun:
    """How many weights, or coupled channels, a rule would keep.

    Attributes:
        kept: how many would be kept.
        total: how many would be ranked.
        unit: what is counted, such as `weights` or `coupled channels`.
        layers: number of layers (or of groups of layers whose channels are coupled) that they lie in.
        counts_weights: whether weights are counted.
    """

    kept: int
    total: int
    unit: str
    layers: int
    counts_weights: bool


def dry_run_rule(rule: Rule, model: nn.Module, input_shape: Sequence[int]) -> DryRun:
    """Count what a rule would keep of a network, whatever values its weights will have.

    For criteria that score single weights, equal scores are used. Criteria that score channels read the network as it
    is, which shows whether every channel has a score. With scopes under which layers do not compete, and with patterns,
    the counts of every layer are known beforehand; with the scope `global` only their sum is.

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
    granularity, criterion = get_granularity(rule.granularity), get_criterion(rule.criterion)
    granularity.check_criterion(criterion)
    wanted = granularity.sparsity(rule.sparsity)
    weights = prunable_weights(model, rule.layers)
    unit, in_weights = granularity.unit_name, granularity.counts_weights
    are_counts_known = granularity.own_scope is not None or not get_scope(rule.scope).across_layers
    if not (granularity.structured or are_counts_known):  # only the sum is known, so nothing has to be sorted
        total = sum(weight.numel() for weight in weights.values())
        return DryRun(total - pruned_count(total, wanted), total, unit, len(weights), in_weights)
    context = ScoringContext(model, weights, None, tuple(input_shape))
    scores = {name: torch.zeros(weight.shape) for name, weight in weights.items()}
    if criterion.scores_channels:
        scores = compute_scores(rule.criterion, context)
    kept = select_kept(granularity, Ranking(criterion, scores, context, rule.layers), wanted, rule.scope)
    if are_counts_known:
        check_no_empty_layer({name: bits for name, bits in kept.items() if bits.dim() > 1}, wanted)
    counts = granularity.count(kept, model, rule.layers, input_shape)
    pruned, total = (sum(column) for column in zip(*counts.values(), strict=True))
    return DryRun(total - pruned, total, unit, len(counts), in_weights)
