"""Granularities: what is removed as one. Single weights, coupled filters, N of every M weights."""

from __future__ import annotations

import abc
import dataclasses
import re
from collections.abc import Mapping

import numpy as np
import torch

from expunge.core.errors import ConfigError, MaskError
from expunge.sparsity.channels.groups import Channels, expand, find_channels, unit_alive
from expunge.sparsity.criteria.registry import Criterion, Material, Scores

from .allocation import Alive, Pool, allocate, check_sparsity

DEFAULT_SPARSITY = 0.95


@dataclasses.dataclass(frozen=True, eq=False)
class Ranking:
    """Scores that are to become a mask.

    Attributes:
        criterion, scores: what ranked, and the scores.
        material: network and weights that were scored.
        layers: kinds of layers that take part.
        within: weights alive so far (an iterative schedule; the dead stay dead), or None.
    """

    criterion: Criterion
    scores: Scores
    material: Material
    layers: tuple[str, ...]
    within: Mapping[str, torch.Tensor] | None = None


@dataclasses.dataclass(frozen=True)
class Granularity(abc.ABC):
    """What is removed as one. `name` is how it is asked for and recorded."""

    name: str

    def sparsity(self, wanted: float | None) -> float:
        """The sparsity to reach where `wanted` is None, or `wanted` if it can be reached."""
        return check_sparsity(DEFAULT_SPARSITY if wanted is None else wanted)

    @abc.abstractmethod
    def select(self, ranking: Ranking, sparsity: float, scope: str) -> Alive:
        """Bool tensors by parameter name, True where alive."""


class WeightGranularity(Granularity):
    """Single weights."""

    def select(self, ranking: Ranking, sparsity: float, scope: str) -> Alive:
        """See `Granularity.select`."""
        _wants_weights(ranking.criterion, self.name)
        weights = ranking.material.weights
        pools = {}
        for name in weights:
            dead = None if ranking.within is None else ~ranking.within[name]
            pools[name] = Pool(ranking.scores[name], pool_factor(weights, name), dead)
        alive = allocate(scope, pools, sparsity)
        return {name: alive[name].reshape(weight.shape) for name, weight in weights.items()}


class FilterGranularity(Granularity):
    """Coupled channels: rows of weights, their biases, BatchNorm scales and shifts, residual partners.

    Sparsity is the share of coupled channels, not of weights; `layer` and `erk` work on pools of channels that the same
    layers make. The columns that read a dead channel are not in the mask: they read zeros, and physical removal takes
    them too.
    """

    def select(self, ranking: Ranking, sparsity: float, scope: str) -> Alive:
        """See `Granularity.select`."""
        shape = ranking.material.input_shape
        if shape is None:
            raise MaskError("coupled channels are found from the shape of a record", where="granularity filter")
        channels = find_channels(ranking.material.model, shape)
        pools = channels.pools(ranking.layers)
        scores = unit_scores(channels, ranking)
        before = None if ranking.within is None else unit_alive(channels, dict(ranking.within))
        weights = ranking.material.weights
        contest = {}
        for name, units in pools.items():
            factor = pool_factor(weights, name)
            dead = None if before is None else torch.from_numpy(~before[units])
            contest[name] = Pool(torch.from_numpy(scores[units]), factor, dead)
        chosen = allocate(scope, contest, sparsity)
        kept = np.ones(channels.units, dtype=bool)
        taking_part = np.zeros(channels.units, dtype=bool)
        for name, units in pools.items():
            kept[units], taking_part[units] = chosen[name].numpy(), True
        return expand(channels, kept, taking_part)


def unit_scores(channels: Channels, ranking: Ranking) -> np.ndarray:
    """One score a unit: sum or mean over the weights of its rows, or over its layers (kind `channel`)."""
    total, count = np.zeros(channels.units), np.zeros(channels.units)
    by_weight = ranking.criterion.kind == "weight"
    for name, axis in channels.outputs().items():
        if name not in ranking.scores:
            continue
        here = axis >= 0
        values = ranking.scores[name].double()
        rows = values.reshape(len(axis), -1)
        np.add.at(total, axis[here], rows.sum(1).numpy()[here])
        np.add.at(count, axis[here], rows.shape[1] if by_weight else 1)
    ranked = np.unique(np.concatenate(list(channels.pools(ranking.layers).values())))
    if (count[ranked] == 0).any():
        unit = int(ranked[count[ranked] == 0][0])
        raise MaskError(
            f"the criterion {ranking.criterion.name} has no score for some channels",
            where=channels.producers[unit][0],
            hint="no BatchNorm layer follows them; use filter-l2 or FPGM",
        )
    return total if ranking.criterion.reduce == "sum" else total / np.maximum(count, 1)


@dataclasses.dataclass(frozen=True)
class PatternGranularity(Granularity):
    """At most `n` of every `m` consecutive weights along the input axis (2:4 is what sparse tensor cores take).

    For a convolution the groups run over input channels at each kernel position. Layers whose input axis is not a
    multiple of `m` are left dense and named in the provenance. The scope is the group, whatever is asked for.
    """

    n: int = 2
    m: int = 4

    def sparsity(self, wanted: float | None) -> float:
        """1 - n / m; another wish cannot be met."""
        own = 1 - self.n / self.m
        if wanted is not None and abs(wanted - own) > 1e-3:
            raise MaskError(
                f"the pattern {self.name} has sparsity {own:g} and no other ({wanted:g} was asked for)",
                where="sparsity",
                hint=f"leave the sparsity out, or choose another pattern than {self.name}",
            )
        return own

    def select(self, ranking: Ranking, sparsity: float, scope: str) -> Alive:
        """See `Granularity.select`."""
        _wants_weights(ranking.criterion, self.name)
        alive = {}
        for name in ranking.material.weights:
            values = ranking.scores[name].double()
            if values.shape[1] % self.m:
                continue
            if ranking.within is not None and name in ranking.within:
                values = values.masked_fill(~ranking.within[name], -torch.inf)
            groups = values.movedim(1, -1).reshape(-1, self.m)
            order = torch.argsort(groups, dim=1, stable=True)
            keep = torch.ones_like(groups, dtype=torch.bool).scatter_(1, order[:, : self.m - self.n], False)
            moved = values.movedim(1, -1).shape
            alive[name] = keep.reshape(moved).movedim(-1, 1).contiguous()
            if ranking.within is not None and name in ranking.within:
                alive[name] &= ranking.within[name]
        if not alive:
            raise MaskError(
                f"no layer has an input axis that is a multiple of {self.m}",
                where=f"granularity {self.name}",
                hint="choose a smaller pattern, or other layers",
            )
        return alive


def obeys_pattern(alive: torch.Tensor, n: int, m: int) -> bool:
    """Whether at most `n` of every `m` consecutive entries along axis 1 are True."""
    if alive.dim() < 2 or alive.shape[1] % m:
        return False
    return bool((alive.movedim(1, -1).reshape(-1, m).sum(1) <= n).all())


def _wants_weights(criterion: Criterion, granularity: str) -> None:
    if criterion.kind != "weight":
        raise MaskError(
            f"the criterion {criterion.name} scores channels, not single weights",
            where=f"granularity {granularity}",
            hint="use granularity=filter, or a criterion of single weights such as magnitude",
        )


def pool_factor(weights: Mapping[str, torch.Tensor], pool: str) -> float:
    """(sum of axes) / (product of axes) of a weight, or the mean over those whose names `+` joins: its share in ERK."""
    return float(np.mean([sum(weights[name].shape) / weights[name].numel() for name in pool.split("+")]))


def granularity_names() -> list[str]:
    """What may be asked for; `n:m` stands for patterns such as 2:4."""
    return ["filter", "n:m", "weight"]


def get_granularity(name: str) -> Granularity:
    """A granularity by name: `weight`, `filter`, or a pattern such as `2:4`.

    Raises:
        ConfigError: unknown, or a pattern that keeps nothing or everything.
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
