"""Granularities: what is pruned as one unit. Single weights, coupled channels, or N of every M weights."""

from __future__ import annotations

import abc
import dataclasses
import re
from collections.abc import Mapping

import numpy as np
import torch

from expunge.core.errors import ConfigError, MaskError
from expunge.core.show import repr_fields
from expunge.sparsity.channels.groups import Channels, expand_units, find_channels, find_kept_units
from expunge.sparsity.criteria.registry import Criterion, Scores, ScoringContext

from .allocation import BoolTensors, Pool, allocate, check_sparsity

DEFAULT_SPARSITY = 0.95


@dataclasses.dataclass(frozen=True, eq=False)
class Ranking:
    """Scores from which a mask is selected.

    Attributes:
        criterion: the criterion that gave the scores.
        scores: the scores, by name.
        context: network and weights that were scored.
        layers: layer types that are pruned.
        within: bool tensors of the weights that are kept so far (in an iterative schedule; what is pruned stays
            pruned), or None.
    """

    criterion: Criterion
    scores: Scores
    context: ScoringContext
    layers: tuple[str, ...]
    within: Mapping[str, torch.Tensor] | None = None

    __repr__ = repr_fields


@dataclasses.dataclass(frozen=True)
class Granularity(abc.ABC):
    """What is pruned as one unit. `name` is the option value, which the mask records."""

    name: str

    def sparsity(self, wanted: float | None) -> float:
        """The default sparsity if `wanted` is None, else `wanted`, checked."""
        return check_sparsity(DEFAULT_SPARSITY if wanted is None else wanted)

    @abc.abstractmethod
    def select(self, ranking: Ranking, sparsity: float, scope: str) -> BoolTensors:
        """Return bool tensors by parameter name, True where kept."""


class WeightGranularity(Granularity):
    """Single weights."""

    def select(self, ranking: Ranking, sparsity: float, scope: str) -> BoolTensors:
        """See `Granularity.select`."""
        _check_scores_weights(ranking.criterion, self.name)
        weights = ranking.context.weights
        pools = {}
        for name in weights:
            pruned = None if ranking.within is None else ~ranking.within[name]
            pools[name] = Pool(ranking.scores[name], erk_factor(weights, name), pruned)
        kept = allocate(scope, pools, sparsity)
        return {name: kept[name].reshape(weight.shape) for name, weight in weights.items()}


class FilterGranularity(Granularity):
    """Coupled channels: rows of weights with their biases, BatchNorm scales and shifts, and residual partners.

    The sparsity is the fraction of coupled channels, not of weights; the scopes `layer` and `erk` work on pools of
    channels that are produced by the same layers. The columns that read a pruned channel are not part of the mask: they
    read zeros, and `shrink` removes them too.
    """

    def select(self, ranking: Ranking, sparsity: float, scope: str) -> BoolTensors:
        """See `Granularity.select`."""
        shape = ranking.context.input_shape
        if shape is None:
            raise MaskError("finding coupled channels needs the shape of a record", where="granularity filter")
        channels = find_channels(ranking.context.model, shape)
        pools = channels.pools(ranking.layers)
        scores = score_units(channels, ranking)
        before = None if ranking.within is None else find_kept_units(channels, dict(ranking.within))
        weights = ranking.context.weights
        candidates = {}
        for name, units in pools.items():
            factor = erk_factor(weights, name)
            pruned = None if before is None else torch.from_numpy(~before[units])
            candidates[name] = Pool(torch.from_numpy(scores[units]), factor, pruned)
        selected = allocate(scope, candidates, sparsity)
        kept = np.ones(channels.units, dtype=bool)
        ranked = np.zeros(channels.units, dtype=bool)
        for name, units in pools.items():
            kept[units], ranked[units] = selected[name].numpy(), True
        return expand_units(channels, kept, ranked)


def score_units(channels: Channels, ranking: Ranking) -> np.ndarray:
    """Compute one score per unit.

    Criteria of level `weight`: sum or mean over the weights of the unit's rows. Level `channel`: sum or mean over its
    layers.

    Raises:
        MaskError: a channel has no score.
    """
    total, count = np.zeros(channels.units), np.zeros(channels.units)
    by_weight = ranking.criterion.level == "weight"
    for name, axis in channels.output_axes().items():
        if name not in ranking.scores:
            continue
        in_unit = axis >= 0
        values = ranking.scores[name].double()
        rows = values.reshape(len(axis), -1)
        np.add.at(total, axis[in_unit], rows.sum(1).numpy()[in_unit])
        np.add.at(count, axis[in_unit], rows.shape[1] if by_weight else 1)
    ranked = np.unique(np.concatenate(list(channels.pools(ranking.layers).values())))
    if (count[ranked] == 0).any():
        unit = int(ranked[count[ranked] == 0][0])
        raise MaskError(
            f"the criterion {ranking.criterion.name} has no score for some channels",
            where=channels.producers[unit][0],
            hint="no BatchNorm layer follows them; use filter-l2 or FPGM",
        )
    return total if ranking.criterion.reduction == "sum" else total / np.maximum(count, 1)


@dataclasses.dataclass(frozen=True)
class PatternGranularity(Granularity):
    """At most `n` of every `m` consecutive weights along the input axis (sparse tensor cores support 2:4).

    In a convolution, the groups lie along the input channels at each kernel position. Layers whose input axis is not a
    multiple of `m` stay dense and are listed in the provenance. Weights are compared within their group, whatever the
    scope.
    """

    n: int = 2
    m: int = 4

    def sparsity(self, wanted: float | None) -> float:
        """1 - n / m; any other wanted sparsity is an error."""
        own = 1 - self.n / self.m
        if wanted is not None and abs(wanted - own) > 1e-3:
            raise MaskError(
                f"the pattern {self.name} has sparsity {own:g} and no other ({wanted:g} was requested)",
                where="sparsity",
                hint=f"leave the sparsity out, or choose another pattern than {self.name}",
            )
        return own

    def select(self, ranking: Ranking, sparsity: float, scope: str) -> BoolTensors:
        """See `Granularity.select`."""
        _check_scores_weights(ranking.criterion, self.name)
        kept = {}
        for name in ranking.context.weights:
            values = ranking.scores[name].double()
            if values.shape[1] % self.m:
                continue
            if ranking.within is not None and name in ranking.within:
                values = values.masked_fill(~ranking.within[name], -torch.inf)
            groups = values.movedim(1, -1).reshape(-1, self.m)
            order = torch.argsort(groups, dim=1, stable=True)
            keep = torch.ones_like(groups, dtype=torch.bool).scatter_(1, order[:, : self.m - self.n], False)
            moved = values.movedim(1, -1).shape
            kept[name] = keep.reshape(moved).movedim(-1, 1).contiguous()
            if ranking.within is not None and name in ranking.within:
                kept[name] &= ranking.within[name]
        if not kept:
            raise MaskError(
                f"no layer has an input axis that is a multiple of {self.m}",
                where=f"granularity {self.name}",
                hint="choose a smaller pattern, or other layers",
            )
        return kept


def obeys_pattern(kept: torch.Tensor, n: int, m: int) -> bool:
    """Whether at most `n` of every `m` consecutive entries along axis 1 are True."""
    if kept.dim() < 2 or kept.shape[1] % m:
        return False
    return bool((kept.movedim(1, -1).reshape(-1, m).sum(1) <= n).all())


def _check_scores_weights(criterion: Criterion, granularity: str) -> None:
    if criterion.level != "weight":
        raise MaskError(
            f"the criterion {criterion.name} scores channels, not single weights",
            where=f"granularity {granularity}",
            hint="use granularity=filter, or a criterion of single weights such as magnitude",
        )


def erk_factor(weights: Mapping[str, torch.Tensor], pool: str) -> float:
    """ERK factor of a pool: (sum of axes) / (product of axes), averaged over the weights that its name joins by `+`."""
    return float(np.mean([sum(weights[name].shape) / weights[name].numel() for name in pool.split("+")]))


def granularity_names() -> list[str]:
    """Return the names of the granularities; `n:m` stands for patterns such as 2:4.

    Example:
        >>> granularity_names()
        ['filter', 'n:m', 'weight']
    """
    return ["filter", "n:m", "weight"]


def get_granularity(name: str) -> Granularity:
    """Return a granularity by name: `weight`, `filter`, or a pattern such as `2:4`.

    Raises:
        ConfigError: unknown name, or a pattern that keeps no weight or every weight.

    Example:
        >>> get_granularity("1:4").sparsity(None)
        0.75
    """
    if name == "weight":
        return WeightGranularity(name)
    if name == "filter":
        return FilterGranularity(name)
    pattern = re.fullmatch(r"(\d+):(\d+)", name)
    if pattern is None:
        raise ConfigError(
            f"unknown granularity {name!r}", where="granularity", hint="known: weight, filter, n:m (for example 2:4)"
        )
    n, m = int(pattern[1]), int(pattern[2])
    if not 0 < n < m:
        raise ConfigError(f"the pattern {name} keeps {n} of {m} weights; n:m needs 0 < n < m", where="granularity")
    return PatternGranularity(name, n, m)
