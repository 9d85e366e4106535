"""Growing a mask: which of the dead weights (or channels) live again."""

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

GROWTH_OF = ("pruned", "all", "alive")


def grown_share(mask: Mask, growth: float, growth_of: str, model: nn.Module, input_shape: tuple[int, ...]) -> float:
    """The share of the dead that grow, in [0, 1]: `growth` of the pruned, of all, or of the alive ones.

    Weights are counted, or coupled channels where the mask prunes channels.
    """
    total, kept = mask.total, mask.kept
    if mask.provenance.granularity == "filter":
        channels = find_channels(model, input_shape)
        units = np.concatenate(list(channels.pools(tuple(mask.provenance.layers)).values()))
        total, kept = len(units), int(find_kept_units(channels, dict(mask.alive))[units].sum())
    counts = {"pruned": total - kept, "all": total, "alive": kept}
    return min(1.0, growth * counts[growth_of] / (total - kept)) if total > kept else 0.0


def grow(
    mask: Mask,
    scores: Scores,
    share: float,
    model: nn.Module,
    input_shape: tuple[int, ...],
    *,
    reduce: str = "mean",
) -> Mask:
    """The mask with the `share` of its dead weights that score highest alive; whole channels where it prunes channels.

    They compete over all layers where the mask's scope is `global`, and within each layer otherwise.

    Args:
        mask: granularity and scope are read from its provenance.
        scores: by weight name, shapes of the weights; the highest grow first.
        share: of the dead weights (or channels), rounded up.
        model: the network the mask belongs to.
        input_shape: shape of one record.
        reduce: how a channel's score follows from its weights', `mean` or `sum`.
    """
    scope = "global" if mask.provenance.scope == "global" else "layer"
    if mask.provenance.granularity == "filter":
        return _grow_channels(mask, scores, share, scope, model, input_shape, reduce)
    pools, where = {}, {}
    for name, living in mask.alive.items():
        if name not in scores or scores[name].shape != living.shape:
            raise MaskError("there are no scores to grow by", where=name)
        dead = torch.nonzero(~living.reshape(-1)).squeeze(1)
        if len(dead):
            pools[name], where[name] = Pool(scores[name].reshape(-1)[dead].cpu()), dead
    alive = {name: tensor.clone() for name, tensor in mask.alive.items()}
    for name, chosen in _highest(pools, share, scope).items():
        alive[name].view(-1)[where[name][chosen]] = True
    return Mask(alive, mask.provenance)


def _highest(pools: Mapping[str, Pool], share: float, scope: str) -> dict[str, torch.Tensor]:
    """The highest `share` (rounded up) of the pools, as bool tensors."""
    if share >= 1:
        return {name: torch.ones(len(pool.scores), dtype=torch.bool) for name, pool in pools.items()}
    if share <= 0 or not pools:
        return {name: torch.zeros(len(pool.scores), dtype=torch.bool) for name, pool in pools.items()}
    groups = [dict(pools)] if scope == "global" else [{name: pool} for name, pool in pools.items()]
    chosen: dict[str, torch.Tensor] = {}
    for group in groups:
        total = sum(len(pool.scores) for pool in group.values())
        wanted = int(np.ceil(share * total - 1e-9))
        chosen |= allocate("global", group, 1 - wanted / total) if wanted < total else _highest(group, 1.0, scope)
    return chosen


def _grow_channels(
    mask: Mask,
    scores: Scores,
    share: float,
    scope: str,
    model: nn.Module,
    input_shape: tuple[int, ...],
    reduce: str,
) -> Mask:
    channels = find_channels(model, input_shape)
    layers = tuple(mask.provenance.layers)
    kept = find_kept_units(channels, dict(mask.alive))
    rule = Criterion("growth", lambda material: {}, "weight", reduce, False, "")
    ranked = score_units(
        channels, Ranking(rule, scores, ScoringContext(model, prunable_weights(model, layers)), layers)
    )
    taking_part = np.zeros(channels.units, dtype=bool)
    pools, where = {}, {}
    for name, units in channels.pools(layers).items():
        taking_part[units] = True
        dead = units[~kept[units]]
        if len(dead):
            pools[name], where[name] = Pool(torch.from_numpy(ranked[dead])), dead
    for name, chosen in _highest(pools, share, scope).items():
        kept[where[name][chosen.numpy()]] = True
    return Mask(expand_units(channels, kept, taking_part), mask.provenance)
