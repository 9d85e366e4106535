"""From scores of single weights to bool tensors, over all layers together."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from expunge.core.errors import MaskError

from .scope import Pool, allocate, pruned_count

__all__ = ["check_layers", "pruned_count", "select_global"]


def select_global(scores: Mapping[str, torch.Tensor], sparsity: float) -> dict[str, torch.Tensor]:
    """Prune the `round(sparsity * total)` lowest scores over all tensors together; True where alive.

    Ties at the threshold are broken by position (order of names, then index), so that the count is exact and the result
    the same everywhere.

    Raises:
        MaskError: sparsity outside [0, 1), scores not finite, or a layer would lose every weight.
    """
    if not all(bool(torch.isfinite(score).all()) for score in scores.values()):
        raise MaskError("scores are NaN or infinite: the weights are damaged")
    alive = allocate("global", {name: Pool(score) for name, score in scores.items()}, sparsity)
    masks = {name: alive[name].reshape(score.shape) for name, score in scores.items()}
    check_layers(masks, sparsity)
    return masks


def check_layers(masks: Mapping[str, torch.Tensor], sparsity: float) -> None:
    """Raise MaskError where a layer loses every weight: nothing would pass it."""
    dead = [name for name, mask in masks.items() if not mask.any()]
    if dead:
        raise MaskError(
            f"at sparsity {sparsity:g} the layer loses every weight, and nothing would pass it",
            where=dead[0],
            hint="choose a lower sparsity, the scope `layer` or `erk`, or leave this kind of layer out",
        )
