"""Scopes: where weights (or channels) compete with each other. `global`, `layer`, `erk`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from expunge.core.errors import ConfigError, MaskError, unknown_name_hint


@dataclasses.dataclass(frozen=True, eq=False)
class Pool:
    """What competes inside one layer.

    Attributes:
        scores: `U` finite numbers, the lowest go first.
        factor: (sum of the axes of the weight) / (product of them), for ERK.
        dead: `U` bools, dead already (an iterative schedule), or None. The dead stay dead.
    """

    scores: torch.Tensor
    factor: float = 1.0
    dead: torch.Tensor | None = None

    @property
    def ranked(self) -> torch.Tensor:
        """Scores as float64, the dead below everything."""
        values = self.scores.reshape(-1).double()
        return values if self.dead is None else values.masked_fill(self.dead.reshape(-1), -math.inf)


Pools = Mapping[str, Pool]
Alive = dict[str, torch.Tensor]
Scope = Callable[[Pools, float], Alive]
_SCOPES: dict[str, Scope] = {}


def register_scope(name: str) -> Callable[[Scope], Scope]:
    """Register a function `(pools, sparsity) -> alive` under a name."""

    def keep(function: Scope) -> Scope:
        _SCOPES[name] = function
        return function

    return keep


def scope_names() -> list[str]:
    """The registered scopes."""
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
    """Return it, or raise MaskError where it is not a share in [0, 1)."""
    if not (math.isfinite(sparsity) and 0.0 <= sparsity < 1.0):
        raise MaskError(f"sparsity is a share in [0, 1), not {sparsity}", where="sparsity")
    return float(sparsity)


def allocate(scope: str, pools: Pools, sparsity: float) -> Alive:
    """Which members of every pool stay alive, one bool tensor a pool.

    Ties are broken by position, so that counts are exact and the result is the same everywhere.

    Raises:
        ConfigError: unknown scope.
        MaskError: the sparsity is no share in [0, 1).
    """
    return _SCOPES[check_scope(scope)](pools, check_sparsity(sparsity))


def _without_lowest(ranked: torch.Tensor, count: int) -> torch.Tensor:
    alive = torch.ones(ranked.numel(), dtype=torch.bool)
    alive[torch.argsort(ranked, stable=True)[:count]] = False
    return alive


@register_scope("global")
def everywhere(pools: Pools, sparsity: float) -> Alive:
    """One threshold over all layers together."""
    ranked = torch.cat([pool.ranked for pool in pools.values()])
    alive = _without_lowest(ranked, pruned_count(ranked.numel(), sparsity))
    parts = alive.split([pool.scores.numel() for pool in pools.values()])
    return {name: part.clone() for name, part in zip(pools, parts, strict=True)}


@register_scope("layer")
def layer_by_layer(pools: Pools, sparsity: float) -> Alive:
    """The same share of every layer."""
    return {
        name: _without_lowest(pool.ranked, pruned_count(pool.scores.numel(), sparsity)) for name, pool in pools.items()
    }


@register_scope("erk")
def erdos_renyi_kernel(pools: Pools, sparsity: float) -> Alive:
    """Densities proportional to (sum of axes) / (product of axes) of each weight, at most 1 [Evci2020]_.

    The total is round(sparsity * total) exactly.

    .. [Evci2020] Evci et al.: Rigging the lottery, ICML 2020.
    """
    sizes = [pool.scores.numel() for pool in pools.values()]
    keep = erk_counts(sizes, [pool.factor for pool in pools.values()], sum(sizes) - pruned_count(sum(sizes), sparsity))
    return {
        name: _without_lowest(pool.ranked, pool.scores.numel() - count)
        for (name, pool), count in zip(pools.items(), keep, strict=True)
    }


def erk_counts(counts: Sequence[int], factors: Sequence[float], wanted: int) -> list[int]:
    """How many of `counts` each layer keeps, `wanted` in all: densities proportional to `factors`, at most 1.

    Counts are rounded by largest remainder.
    """
    sizes, parts = np.asarray(counts, dtype=float), np.asarray(factors)
    density = np.ones_like(sizes)
    full = np.zeros(len(sizes), dtype=bool)
    while not full.all():  # layers that would exceed density 1 are full, the others share the rest
        share = (wanted - sizes[full].sum()) / (parts * sizes)[~full].sum()
        density[~full] = parts[~full] * share
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
