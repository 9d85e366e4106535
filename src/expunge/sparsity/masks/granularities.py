"""The built-in granularities: single weights, coupled channels, and N of every M weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from expunge.core.errors import ConfigError, MaskError
from expunge.core.hashing import plain_name
from expunge.core.show import repr_fields
from expunge.sparsity.channels.groups import Channels, expand_units, find_channels, find_kept_units

from .allocation import BoolTensors, Count, Pool, allocate
from .granularity import Granularity, Ranking, erk_factor, obeys_pattern, register_granularity, score_units


@register_granularity("weight", unit_name="weights", counts_weights=True, structured=False)
class WeightGranularity(Granularity):
    """Single weights."""

    def select(self, ranking: Ranking, sparsity: float, scope: str) -> BoolTensors:
        """See `Granularity.select`."""
        self.check_criterion(ranking.criterion)
        weights = ranking.context.weights
        pools = {}
        for name in weights:
            pruned = None if ranking.within is None else ~ranking.within[name]
            pools[name] = Pool(ranking.scores[name], erk_factor(weights, name), pruned)
        kept = allocate(scope, pools, sparsity)
        return {name: kept[name].reshape(weight.shape) for name, weight in weights.items()}


@register_granularity("filter", unit_name="coupled channels", whole_channels=True)
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
        for name, units in pools.items():
            kept[units] = selected[name].numpy()
        return expand_units(channels, kept, _find_ranked(channels, ranking.layers))

    def count(
        self, kept: Mapping[str, torch.Tensor], model: nn.Module, layers: Sequence[str], input_shape: Sequence[int]
    ) -> dict[str, Count]:
        """Count coupled channels; see `Granularity.count`."""
        channels = find_channels(model, input_shape)
        kept_units = find_kept_units(channels, dict(kept))
        return {
            name: (int((~kept_units[units]).sum()), len(units))
            for name, units in channels.pools(layers).items()
            if any(part in kept for part in name.split("+"))
        }

    def read_kept(
        self, model: nn.Module, names: Sequence[str], layers: Sequence[str], input_shape: Sequence[int]
    ) -> BoolTensors:
        """Read which channels are kept so far: those that have a row that is not zero.

        Biases, scales and shifts may be 0 by chance or by initialisation, so they follow the channel.
        """
        parameters = {plain_name(name): p.detach().cpu() for name, p in model.named_parameters()}
        channels = find_channels(model, input_shape)
        rows = {n: t != 0 if t.dim() > 1 else torch.zeros(t.shape, dtype=torch.bool) for n, t in parameters.items()}
        return expand_units(channels, find_kept_units(channels, rows), _find_ranked(channels, layers))

    def find_tensors(self, model: nn.Module, layers: Sequence[str], input_shape: Sequence[int]) -> set[str]:
        """Rows, biases, BatchNorm scales and shifts of the channels; see `Granularity.find_tensors`."""
        channels = find_channels(model, input_shape)
        return set(expand_units(channels, np.ones(channels.units, dtype=bool), _find_ranked(channels, layers)))


def _find_ranked(channels: Channels, layers: Sequence[str]) -> NDArray[np.bool_]:
    """Which units are ranked: those of the layers."""
    ranked = np.zeros(channels.units, dtype=bool)
    for units in channels.pools(layers).values():
        ranked[units] = True
    return ranked


@register_granularity(
    "pattern", unit_name="weights", counts_weights=True, own_scope="group", family=r"\d{1,6}:\d{1,6}", shown_as="n:m"
)
@dataclasses.dataclass(frozen=True)
class PatternGranularity(Granularity):
    """At most `n` of every `m` consecutive weights along the input axis (sparse tensor cores support 2:4).

    In a convolution, the groups lie along the input channels at each kernel position. Layers whose input axis is not a
    multiple of `m` stay dense and are listed in the provenance. Weights are compared within their group, whatever the
    scope.
    """

    n: int = 2
    m: int = 4

    __repr__ = repr_fields

    def parse(self, name: str) -> PatternGranularity:
        """The pattern `n:m`."""
        n, m = (int(number) for number in name.split(":"))
        if not 0 < n < m:
            raise ConfigError(f"the pattern {name} keeps {n} of {m} weights; n:m needs 0 < n < m", where="granularity")
        return dataclasses.replace(self, name=name, n=n, m=m, fixed_sparsity=1 - n / m)

    def find_unstructured(self, kept: Mapping[str, torch.Tensor]) -> list[str]:
        """Weights without the pattern; see `Granularity.find_unstructured`."""
        return [name for name, tensor in kept.items() if not obeys_pattern(tensor, self.n, self.m)]

    def select(self, ranking: Ranking, sparsity: float, scope: str) -> BoolTensors:
        """See `Granularity.select`."""
        self.check_criterion(ranking.criterion)
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
