"""Growing a mask: selecting the pruned weights (or channels) to regrow."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from expunge.core.errors import MaskError
from expunge.core.mask import Mask
from expunge.sparsity.channels.groups import expand_units, find_channels, find_kept_units
from expunge.sparsity.channels.layers import prunable_weights
from expunge.sparsity.criteria.registry import Criterion, Scores, ScoringContext
from expunge.sparsity.masks.allocation import Pool, allocate
from expunge.sparsity.masks.granularity import Ranking, score_units
from expunge.sparsity.masks.recorded import competes_across_layers, recorded_granularity

GROWTH_OF = ("pruned", "all", "kept")


def grown_fraction(mask: Mask, growth: float, growth_of: str, model: nn.Module, input_shape: tuple[int, ...]) -> float:
    """Return the fraction of pruned weights to regrow, in [0, 1].

    Args:
        mask: the mask to grow.
        growth: a fraction of the weights that `growth_of` names.
        growth_of: `pruned`, `all`, or `kept`.
        model: the network of the mask.
        input_shape: shape of one record.

    If the mask prunes channels, coupled channels are counted instead of weights.
    """
    total, kept = mask.total, mask.kept_count
    if recorded_granularity(mask.provenance).whole_channels:
        channels = find_channels(model, input_shape)
        units = np.concatenate(list(channels.pools(tuple(mask.provenance.layers)).values()))
        total, kept = len(units), int(find_kept_units(channels, dict(mask.kept))[units].sum())
    counts = {"pruned": total - kept, "all": total, "kept": kept}
    return min(1.0, growth * counts[growth_of] / (total - kept)) if total > kept else 0.0


def grow(
    mask: Mask,
    scores: Scores,
    fraction: float,
    model: nn.Module,
    input_shape: tuple[int, ...],
    *,
    reduce: str = "mean",
) -> Mask:
    """Return the mask with the highest-scoring fraction of its pruned weights (or channels) regrown.

    With a scope under which layers compete (`global`), the weights of all layers are ranked together; otherwise those
    of each layer.

    Args:
        mask: the mask to grow; its provenance has the granularity and the scope.
        scores: scores by weight name, in the shapes of the weights; the highest are regrown first.
        fraction: fraction of the pruned weights (or channels) to regrow, rounded up to an integer.
        model: the network of the mask.
        input_shape: shape of one record.
        reduce: aggregation of the weights' scores to a channel's score, `mean` or `sum`.

    Raises:
        MaskError: scores of a masked weight are missing or have the wrong shape.
    """
    across = competes_across_layers(mask.provenance)
    if recorded_granularity(mask.provenance).whole_channels:
        return _grow_channels(mask, scores, fraction, across, model, input_shape, reduce)
    pools, indices = {}, {}
    for name, old in mask.kept.items():
        if name not in scores or scores[name].shape != old.shape:
            raise MaskError("there are no scores for regrowing this weight", where=name)
        pruned = torch.nonzero(~old.reshape(-1)).squeeze(1)
        if len(pruned):
            pools[name], indices[name] = Pool(scores[name].reshape(-1)[pruned].cpu()), pruned
    kept = {name: tensor.clone() for name, tensor in mask.kept.items()}
    for name, chosen in _select_highest(pools, fraction, across).items():
        kept[name].view(-1)[indices[name][chosen]] = True
    return Mask(kept, mask.provenance)


def _select_highest(pools: Mapping[str, Pool], fraction: float, across: bool) -> dict[str, torch.Tensor]:
    """Select the highest scores of the pools, a fraction of them (rounded up), as bool tensors by name."""
    if fraction >= 1:
        return {name: torch.ones(len(pool.scores), dtype=torch.bool) for name, pool in pools.items()}
    if fraction <= 0 or not pools:
        return {name: torch.zeros(len(pool.scores), dtype=torch.bool) for name, pool in pools.items()}
    groups = [dict(pools)] if across else [{name: pool} for name, pool in pools.items()]
    chosen: dict[str, torch.Tensor] = {}
    for group in groups:
        total = sum(len(pool.scores) for pool in group.values())
        count = int(np.ceil(fraction * total - 1e-9))
        chosen |= allocate("global", group, 1 - count / total) if count < total else _select_highest(group, 1.0, across)
    return chosen


def _grow_channels(
    mask: Mask,
    scores: Scores,
    fraction: float,
    across: bool,
    model: nn.Module,
    input_shape: tuple[int, ...],
    reduce: str,
) -> Mask:
    channels = find_channels(model, input_shape)
    layers = tuple(mask.provenance.layers)
    kept = find_kept_units(channels, dict(mask.kept))
    rule = Criterion("growth", lambda context: {}, reduction=reduce)
    ranked = score_units(
        channels, Ranking(rule, scores, ScoringContext(model, prunable_weights(model, layers)), layers)
    )
    is_ranked = np.zeros(channels.units, dtype=bool)
    pools, indices = {}, {}
    for name, units in channels.pools(layers).items():
        is_ranked[units] = True
        pruned = units[~kept[units]]
        if len(pruned):
            pools[name], indices[name] = Pool(torch.from_numpy(ranked[pruned])), pruned
    for name, chosen in _select_highest(pools, fraction, across).items():
        kept[indices[name][chosen.numpy()]] = True
    return Mask(expand_units(channels, kept, is_ranked), mask.provenance)
