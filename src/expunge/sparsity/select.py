"""From scores to bool tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from expunge.core.errors import MaskError


def pruned_count(total: int, sparsity: float) -> int:
    """How many of `total` weights are pruned: round(sparsity * total), as `torch.nn.utils.prune` counts."""
    return round(sparsity * total)


def select_global(scores: Mapping[str, torch.Tensor], sparsity: float) -> dict[str, torch.Tensor]:
    """Prune the `round(sparsity * total)` lowest scores over all tensors together; True where alive.

    Ties at the threshold are broken by position (order of names, then index), so that the count is exact and the result
    the same everywhere.

    Raises:
        MaskError: sparsity outside [0, 1), scores not finite, or a layer would lose every weight.
    """
    if not (math.isfinite(sparsity) and 0.0 <= sparsity < 1.0):
        raise MaskError(f"sparsity is a share in [0, 1), not {sparsity}", where="sparsity")
    flat = torch.cat([score.reshape(-1).float() for score in scores.values()])
    if not torch.isfinite(flat).all():
        raise MaskError("scores are NaN or infinite: the weights are damaged")
    alive = torch.ones(flat.numel(), dtype=torch.bool)
    alive[torch.argsort(flat, stable=True)[: pruned_count(flat.numel(), sparsity)]] = False
    parts = alive.split([score.numel() for score in scores.values()])
    masks = {name: part.reshape(score.shape).clone() for (name, score), part in zip(scores.items(), parts, strict=True)}
    dead = [name for name, mask in masks.items() if not mask.any()]
    if dead:
        raise MaskError(
            f"at sparsity {sparsity:g} the layer loses every weight, and nothing would pass it",
            where=dead[0],
            hint="choose a lower sparsity or leave this kind of layer out",
        )
    return masks
