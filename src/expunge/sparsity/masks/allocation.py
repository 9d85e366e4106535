"""Scopes: over which weights (or channels) scores are compared. `global`, `layer`, `erk`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from expunge.core.errors import ConfigError, MaskError, unknown_name_hint
from expunge.core.show import repr_fields


@dataclasses.dataclass(frozen=True, eq=False)
class Pool:
    """The weights or channels of one layer that are ranked.

    Attributes:
        scores: `U` finite numbers; the lowest are pruned first.
        factor: (sum of the axes of the weight) / (product of them), for ERK.
        pruned: `U` bools, True where already pruned (by an earlier step of an iterative schedule), or None. What is
            pruned stays pruned.
    """

    scores: torch.Tensor
    factor: float = 1.0
    pruned: torch.Tensor | None = None

    __repr__ = repr_fields

    @property
    def ranked(self) -> torch.Tensor:
        """Scores as float64, -inf where already pruned."""
        values = self.scores.reshape(-1).double()
        return values if self.pruned is None else values.masked_fill(self.pruned.reshape(-1), -math.inf)


#: Bool tensors by name, True where kept.
BoolTensors = dict[str, torch.Tensor]
Pools = Mapping[str, Pool]
Scope = Callable[[Pools, float], BoolTensors]
_SCOPES: dict[str, Scope] = {}


def register_scope(name: str) -> Callable[[Scope], Scope]:
    """Register a function `(pools, sparsity) -> kept` under a name."""

    def register(function: Scope) -> Scope:
        _SCOPES[name] = function
        return function

    return register


def scope_names() -> list[str]:
    """Return the names of the registered scopes.

    Example:
        >>> scope_names()
        ['erk', 'global', 'layer']
    """
    return sorted(_SCOPES)


def check_scope(scope: str) -> str:
    """Return the name of a registered scope, or raise ConfigError."""
    if not isinstance(scope, str) or scope not in _SCOPES:
        raise ConfigError(f"unknown scope {scope!r}", where="scope", hint=unknown_name_hint(scope, _SCOPES))
    return scope


def pruned_count(total: int, sparsity: float) -> int:
    """How many of `total` are pruned: round(sparsity * total), as `torch.nn.utils.prune` counts."""
    return round(sparsity * total)


def check_sparsity(sparsity: float) -> float:
    """Return the sparsity as a float, or raise MaskError if it is not a fraction in [0, 1)."""
    if not (math.isfinite(sparsity) and 0.0 <= sparsity < 1.0):
        raise MaskError(f"sparsity must be a fraction in [0, 1), not {sparsity}", where="sparsity")
    return float(sparsity)


def allocate(scope: str, pools: Pools, sparsity: float) -> BoolTensors:
    """Select the kept members of every pool; one bool tensor per pool, True where kept.

    Ties are broken by position, so counts are exact and the result is the same on every machine.

    Raises:
        ConfigError: unknown scope.
        MaskError: the sparsity is not a fraction in [0, 1).
    """
    return _SCOPES[check_scope(scope)](pools, check_sparsity(sparsity))


def _prune_lowest(ranked: torch.Tensor, count: int) -> torch.Tensor:
    kept = torch.ones(ranked.numel(), dtype=torch.bool)
    kept[torch.argsort(ranked, stable=True)[:count]] = False
    return kept


@register_scope("global")
def allocate_globally(pools: Pools, sparsity: float) -> BoolTensors:
    """One threshold over all layers together."""
    ranked = torch.cat([pool.ranked for pool in pools.values()])
    kept = _prune_lowest(ranked, pruned_count(ranked.numel(), sparsity))
    parts = kept.split([pool.scores.numel() for pool in pools.values()])
    return {name: part.clone() for name, part in zip(pools, parts, strict=True)}


@register_scope("layer")
def allocate_per_layer(pools: Pools, sparsity: float) -> BoolTensors:
    """The same fraction of every layer."""
    return {
        name: _prune_lowest(pool.ranked, pruned_count(pool.scores.numel(), sparsity)) for name, pool in pools.items()
    }


@register_scope("erk")
def allocate_erk(pools: Pools, sparsity: float) -> BoolTensors:
    """Densities proportional to (sum of axes) / (product of axes) of each weight, at most 1 [Evci2020]_.

    The total number of pruned members is exactly round(sparsity * total).

    .. [Evci2020] Evci et al.: Rigging the lottery, ICML 2020.
    """
    sizes = [pool.scores.numel() for pool in pools.values()]
    keep = erk_counts(sizes, [pool.factor for pool in pools.values()], sum(sizes) - pruned_count(sum(sizes), sparsity))
    return {
        name: _prune_lowest(pool.ranked, pool.scores.numel() - count)
        for (name, pool), count in zip(pools.items(), keep, strict=True)
    }


def erk_counts(counts: Sequence[int], factors: Sequence[float], wanted: int) -> list[int]:
    """How many of `counts` each layer keeps, `wanted` in total: densities proportional to `factors`, at most 1.

    Counts are rounded by largest remainder.
    """
    sizes, parts = np.asarray(counts, dtype=float), np.asarray(factors)
    density = np.ones_like(sizes)
    full = np.zeros(len(sizes), dtype=bool)
    while not full.all():  # layers that would exceed density 1 are kept whole; the others divide the rest
        scale = (wanted - sizes[full].sum()) / (parts * sizes)[~full].sum()
        density[~full] = parts[~full] * scale
        over = ~full & (density > 1)
        if not over.any():
            break
        full |= over
        density[full] = 1.0
    exact = density * sizes
    keep = np.floor(exact + 1e-9).astype(int)
    for index in np.argsort(-(exact - keep), kind="stable")[: wanted - keep.sum()]:
        keep[index] += 1
    return [int(count) for count in keep]


def select_global(scores: Mapping[str, torch.Tensor], sparsity: float) -> dict[str, torch.Tensor]:
    """Prune the `round(sparsity * total)` lowest scores over all tensors together.

    Ties at the threshold are broken by position (order of names, then index), so the count is exact and the result is
    the same on every machine.

    Args:
        scores: finite scores by parameter name, each in the shape of its weight.
        sparsity: fraction to prune, in [0, 1).

    Returns:
        Bool tensors of the same shapes, True where kept.

    Raises:
        MaskError: sparsity outside [0, 1), scores not finite, or a layer would lose every weight.

    Example:
        >>> import torch
        >>> kept = select_global({"a": torch.tensor([0.1, 3.0]), "b": torch.tensor([0.2, 0.3, 2.0])}, 0.4)
        >>> {name: mask.tolist() for name, mask in kept.items()}
        {'a': [False, True], 'b': [False, True, True]}
    """
    if not all(bool(torch.isfinite(score).all()) for score in scores.values()):
        raise MaskError("scores are NaN or infinite: the weights are damaged")
    kept = allocate("global", {name: Pool(score) for name, score in scores.items()}, sparsity)
    masks = {name: kept[name].reshape(score.shape) for name, score in scores.items()}
    check_no_empty_layer(masks, sparsity)
    return masks


def check_no_empty_layer(masks: Mapping[str, torch.Tensor], sparsity: float) -> None:
    """Raise MaskError if a layer loses every weight, because its outputs would no longer depend on its inputs."""
    empty = [name for name, mask in masks.items() if not mask.any()]
    if empty:
        raise MaskError(
            f"at sparsity {sparsity:g} the layer loses every weight, so it would pass nothing on",
            where=empty[0],
            hint="choose a lower sparsity, the scope `layer` or `erk`, or leave this layer type out",
        )
