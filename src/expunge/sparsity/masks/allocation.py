"""Scopes: over which weights (or channels) scores are compared. `global`, `layer`, `erk`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from expunge.core.errors import MaskError
from expunge.core.registry import SCOPES
from expunge.core.registry.custom_code import naming
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
Allocation = Callable[[Pools, float], BoolTensors]
#: Number of pruned weights (or coupled channels) of a layer, and number of all.
Count = tuple[int, int]
#: `(counts by layer, ERK factors by layer, what is counted)`; raises MaskError if the scope does not give such counts.
CheckCounts = Callable[[Mapping[str, Count], Mapping[str, float], str], None]


@dataclasses.dataclass(frozen=True)
class Scope:
    """A registered scope.

    Attributes:
        name: the option value, which masks record.
        allocate: function `(pools, sparsity) -> kept`.
        across_layers: whether layers compete, so that the scores decide how many a layer keeps. If not, the counts of
            every layer are known before any score is.
        check_counts: raises MaskError if the counts of a mask cannot be those of this scope; None: all counts can.
    """

    name: str
    allocate: Allocation
    across_layers: bool = True
    check_counts: CheckCounts | None = None

    __repr__ = repr_fields


def register_scope(
    name: str, *, across_layers: bool = True, check_counts: CheckCounts | None = None
) -> Callable[[Allocation], Allocation]:
    """Register a function `(pools, sparsity) -> kept` as a scope; see `Scope` for the arguments.

    Raises:
        ConfigError: the name is registered by other code already.

    Example:
        >>> from torch import nn
        >>> from expunge.core.registry import SCOPES
        >>> from expunge.sparsity import Rule, make_mask
        >>> with SCOPES.temporary():  # only for this example
        ...     @register_scope("all-but-the-first", across_layers=False)
        ...     def spare_the_first(pools, sparsity):
        ...         first, *others = pools
        ...         rest = get_scope("layer").allocate({name: pools[name] for name in others}, sparsity)
        ...         return {first: torch.ones(pools[first].scores.numel(), dtype=torch.bool), **rest}
        ...     model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        ...     mask, _ = make_mask(model, Rule(scope="all-but-the-first", layers=("linear",), sparsity=0.5))
        ...     mask.layer_density()
        {'0.weight': 1.0, '1.weight': 0.5}
    """

    def register(function: Allocation) -> Allocation:
        SCOPES.add(name, Scope(name, function, across_layers, check_counts), function)
        return function

    return register


def scope_names() -> list[str]:
    """Return the names of the known scopes.

    Example:
        >>> {"erk", "global", "layer"} <= set(scope_names())
        True
    """
    return SCOPES.names()


def get_scope(name: str) -> Scope:
    """Return a scope: a registered name, in upper or lower case, or `package.module:function` of a registered one.

    Raises:
        ConfigError: unknown scope, or a plug-in cannot be imported.
        TrustError: the owner did not agree to the code of a reference.

    Example:
        >>> get_scope("global").across_layers, get_scope("ERK").across_layers
        (True, False)
    """
    scope: Scope = SCOPES.get(name)
    return scope


def pruned_count(total: int, sparsity: float) -> int:
    """How many of `total` are pruned: round(sparsity * total), as `torch.nn.utils.prune` counts."""
    return round(sparsity * total)


def check_sparsity(sparsity: float) -> float:
    """Return the sparsity as a float, or raise MaskError if it is not a fraction in [0, 1)."""
    if not (math.isfinite(sparsity) and 0.0 <= sparsity < 1.0):
        hint = f"did you mean {sparsity / 100:g}?" if 1.0 < sparsity < 100.0 else None
        raise MaskError(f"sparsity must be a fraction in [0, 1), not {sparsity}", where="sparsity", hint=hint)
    return float(sparsity)


def allocate(scope: str, pools: Pools, sparsity: float) -> BoolTensors:
    """Select the kept members of every pool; one bool tensor per pool, True where kept.

    Ties are broken by position, so counts are exact and the result is the same on every machine.

    Raises:
        ConfigError: unknown scope.
        MaskError: the sparsity is not a fraction in [0, 1).
    """
    found = get_scope(scope)
    with naming("scope", found.name, found.allocate, MaskError):
        kept = found.allocate(pools, check_sparsity(sparsity))
    for name, pool in pools.items():
        check_kept(kept, name, (pool.scores.numel(),), f"scope {found.name}")
    return kept


def check_kept(kept: object, name: str, shape: Sequence[int], where: str) -> None:
    """Raise MaskError unless what a scope or a granularity returned has a bool tensor of this name and shape."""
    if not isinstance(kept, Mapping) or name not in kept:
        what = f"nothing for {name}" if isinstance(kept, Mapping) else f"a value of type {type(kept).__name__}"
        raise MaskError(f"returned {what}", where=where, hint="it returns bool tensors by name, True where kept")
    found = kept[name]
    if not isinstance(found, torch.Tensor) or found.dtype != torch.bool or tuple(found.shape) != tuple(shape):
        dtype, size = (found.dtype, tuple(found.shape)) if isinstance(found, torch.Tensor) else (type(found), "")
        what = f"returned {dtype} {size} for {name}, not bools of the shape {tuple(shape)}"
        raise MaskError(what, where=where, hint="True where kept")


def _prune_lowest(ranked: torch.Tensor, count: int) -> torch.Tensor:
    kept = torch.ones(ranked.numel(), dtype=torch.bool)
    kept[torch.argsort(ranked, stable=True)[:count]] = False
    return kept


@register_scope("global", across_layers=True)
def allocate_globally(pools: Pools, sparsity: float) -> BoolTensors:
    """One threshold over all layers together."""
    ranked = torch.cat([pool.ranked for pool in pools.values()])
    kept = _prune_lowest(ranked, pruned_count(ranked.numel(), sparsity))
    parts = kept.split([pool.scores.numel() for pool in pools.values()])
    return {name: part.clone() for name, part in zip(pools, parts, strict=True)}


def _check_equal_fractions(counts: Mapping[str, Count], factors: Mapping[str, float], unit: str) -> None:
    """Rounding may change the count of a layer by one."""
    low = max((pruned - 1) / total for pruned, total in counts.values())
    high = min((pruned + 1) / total for pruned, total in counts.values())
    if low > high:
        fractions = {name: pruned / total for name, (pruned, total) in counts.items()}
        least = min(fractions, key=lambda name: fractions[name])
        most = max(fractions, key=lambda name: fractions[name])
        raise MaskError(
            f"the recorded scope is layer (an equal fraction in every layer), but {100 * fractions[least]:.1f} % of "
            f"the {unit} of {least} are pruned and {100 * fractions[most]:.1f} % of {most}",
            where="scope",
            hint="record scope=global if one threshold was used; leave a layer that was not pruned out of the mask "
            "(docs/formats/mask.md)",
        )


@register_scope("layer", across_layers=False, check_counts=_check_equal_fractions)
def allocate_per_layer(pools: Pools, sparsity: float) -> BoolTensors:
    """The same fraction of every layer."""
    return {
        name: _prune_lowest(pool.ranked, pruned_count(pool.scores.numel(), sparsity)) for name, pool in pools.items()
    }


def _check_erk(counts: Mapping[str, Count], factors: Mapping[str, float], unit: str) -> None:
    """Rounding may change the count of a layer by one for every layer."""
    kept_counts = {name: total - pruned for name, (pruned, total) in counts.items()}
    totals, ordered = [total for _, total in counts.values()], [factors[name] for name in counts]
    expected = erk_counts(totals, ordered, sum(kept_counts.values()))
    for (name, kept), wanted in zip(kept_counts.items(), expected, strict=True):
        if abs(kept - wanted) > len(counts):
            raise MaskError(
                f"the recorded scope is erk, which would keep {wanted} {unit} of the layer, but the mask keeps {kept}",
                where=f"scope: {name}",
                hint="record scope=global if one threshold was used",
            )


@register_scope("erk", across_layers=False, check_counts=_check_erk)
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
