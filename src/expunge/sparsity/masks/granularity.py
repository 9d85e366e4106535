"""Granularities: what is pruned as one unit. The base class, and how granularities are registered and found."""

from __future__ import annotations

import abc
import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from expunge.core.errors import ConfigError, MaskError, unknown_name_hint
from expunge.core.hashing import plain_name
from expunge.core.registry import GRANULARITIES, is_reference
from expunge.core.registry.custom_code import naming
from expunge.core.show import repr_fields
from expunge.sparsity.channels.groups import Channels
from expunge.sparsity.channels.layers import prunable_weights
from expunge.sparsity.criteria.registry import Criterion, Scores, ScoringContext

from .allocation import BoolTensors, Count, check_kept, check_sparsity

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
    """What is pruned as one unit. A subclass defines `select`; the attributes are facts about it.

    Attributes:
        name: the option value, which masks record.
        unit_name: what is ranked and counted, in the plural: `weights`, `coupled channels`.
        counts_weights: whether the sparsity is a fraction of the weights in the mask; else the class defines `count`.
        structured: whether only certain sets of weights can be pruned, so that a mask loses its structure if further
            single weights are pruned.
        whole_channels: whether whole channels are pruned, with biases, scales and shifts. Then criteria that score
            channels can be used, and a pruned channel before a ReLU has no gradient.
        fixed_sparsity: the only sparsity that it has, or None if it can have any.
        own_scope: what a mask records as its scope, if scores are compared within groups of the granularity's own,
            whatever the scope is; or None.
        family: a regular expression of further names, which `parse` reads; or None.
        shown_as: what stands for the names of a family in lists: `n:m`.
    """

    name: str
    unit_name: str = "units"
    counts_weights: bool = False
    structured: bool = True
    whole_channels: bool = False
    fixed_sparsity: float | None = None
    own_scope: str | None = None
    family: str | None = None
    shown_as: str | None = None

    __repr__ = repr_fields

    @abc.abstractmethod
    def select(self, ranking: Ranking, sparsity: float, scope: str) -> BoolTensors:
        """Return bool tensors by parameter name, True where kept."""

    def parse(self, name: str) -> Granularity:
        """The member of the family that has this name, which matches `family`."""
        return dataclasses.replace(self, name=name)

    def sparsity(self, wanted: float | None) -> float:
        """The sparsity to reach: `wanted`, or the default if it is None.

        Raises:
            MaskError: not a fraction in [0, 1), or not the fixed sparsity.
        """
        own = self.fixed_sparsity
        if own is None:
            return check_sparsity(DEFAULT_SPARSITY if wanted is None else wanted)
        if wanted is not None and abs(wanted - own) > 1e-3:
            raise MaskError(
                f"the granularity {self.name} has sparsity {own:g} and no other ({wanted:g} was requested)",
                where="sparsity",
                hint=f"leave the sparsity out, or choose another granularity than {self.name}",
            )
        return own

    def check_criterion(self, criterion: Criterion) -> None:
        """Raise MaskError if a criterion that scores channels would have to rank something else."""
        if criterion.scores_channels and not self.whole_channels:
            raise MaskError(
                f"the criterion {criterion.name} scores channels, not single weights",
                where=f"granularity {self.name}",
                hint="use granularity=filter, or a criterion of single weights such as magnitude",
            )

    def record_scope(self, scope: str) -> str:
        """What a mask records as its scope."""
        return self.own_scope or scope

    def read_scope(self, recorded: str) -> str:
        """The scope of the rule, from what a mask records."""
        return "global" if recorded == self.own_scope else recorded

    def count(
        self, kept: Mapping[str, torch.Tensor], model: nn.Module, layers: Sequence[str], input_shape: Sequence[int]
    ) -> dict[str, Count]:
        """Count what was ranked when a mask was made, as far as the mask names it; here: weights.

        Args:
            kept: bool tensors of the mask, True where kept.
            model: the network.
            layers: layer types that were pruned.
            input_shape: shape of one record.

        Returns:
            By layer (or pool of channels): number pruned, number in total.

        Raises:
            MaskError: there is no such layer, or the units cannot be found.
        """
        named = [name for name in prunable_weights(model, layers) if name in kept]
        return {name: (int((~kept[name]).sum()), kept[name].numel()) for name in named}

    def read_kept(
        self, model: nn.Module, names: Sequence[str], layers: Sequence[str], input_shape: Sequence[int]
    ) -> BoolTensors:
        """Read from the values of the weights which are kept so far; here: those that are not exactly 0.

        Args:
            model: the network.
            names: the tensors that a mask of this granularity names.
            layers: layer types that are pruned.
            input_shape: shape of one record.
        """
        parameters = {plain_name(name): p.detach().cpu() for name, p in model.named_parameters()}
        return {name: parameters[name] != 0 for name in names}

    def find_unstructured(self, kept: Mapping[str, torch.Tensor]) -> list[str]:
        """Names of ranked weights of a mask that do not have the structure of the granularity; here: none."""
        return []

    def find_tensors(self, model: nn.Module, layers: Sequence[str], input_shape: Sequence[int]) -> set[str] | None:
        """Names of the tensors that every mask of this granularity has; here: None, any may be named."""
        return None


class UnknownGranularity(Granularity):
    """A granularity that a mask records and nothing defines: it keeps its mask, and nothing can be pruned by it."""

    def select(self, ranking: Ranking, sparsity: float, scope: str) -> BoolTensors:
        """Raise ConfigError."""
        raise _unknown(self.name)


Class = TypeVar("Class", bound=type[Granularity])


def register_granularity(
    name: str,
    *,
    unit_name: str,
    counts_weights: bool = False,
    structured: bool = True,
    whole_channels: bool = False,
    fixed_sparsity: float | None = None,
    own_scope: str | None = None,
    family: str | None = None,
    shown_as: str | None = None,
) -> Callable[[Class], Class]:
    """Register a subclass of `Granularity` under a name; see `Granularity` for the arguments.

    Raises:
        ConfigError: the name is registered by other code already, or the class cannot count its units.

    Example:
        >>> from torch import nn
        >>> from expunge.sparsity import Rule, make_mask
        >>> with GRANULARITIES.temporary():  # only for this example
        ...     @register_granularity("first-half", unit_name="weights", counts_weights=True, fixed_sparsity=0.5)
        ...     class FirstHalf(Granularity):
        ...         def select(self, ranking, sparsity, scope):
        ...             shapes = {name: weight.shape for name, weight in ranking.context.weights.items()}
        ...             return {n: torch.arange(s.numel()).reshape(s) >= s.numel() // 2 for n, s in shapes.items()}
        ...     mask, _ = make_mask(nn.Linear(3, 2), Rule(granularity="first-half", layers=("linear",)))
        ...     mask.kept["weight"].tolist()
        [[False, False, False], [True, True, True]]
    """
    facts: dict[str, Any] = {
        "unit_name": unit_name,
        "counts_weights": counts_weights,
        "structured": structured,
        "whole_channels": whole_channels,
        "fixed_sparsity": fixed_sparsity,
        "own_scope": own_scope,
        "family": family,
        "shown_as": shown_as,
    }

    def register(cls: Class) -> Class:
        if not counts_weights and cls.count is Granularity.count:
            raise ConfigError(
                f"{cls.__name__} ranks {unit_name} but does not define `count`",
                where=f"granularity {name}",
                hint="define it, or register it with counts_weights=True",
            )
        GRANULARITIES.add(name, cls(name, **facts), cls)
        return cls

    return register


def select_kept(granularity: Granularity, ranking: Ranking, sparsity: float, scope: str) -> BoolTensors:
    """Let a granularity select what is kept, and check that it returned a mask.

    Raises:
        MaskError: the code of a custom granularity failed, or it returned something else.
    """
    where = f"granularity {granularity.name}"
    with naming("granularity", granularity.name, type(granularity), MaskError):
        kept = granularity.select(ranking, sparsity, scope)
    if not isinstance(kept, Mapping):
        raise MaskError(
            f"returned a value of type {type(kept).__name__}", where=where, hint="select returns bool tensors by name"
        )
    shapes = {plain_name(name): p.shape for name, p in ranking.context.model.named_parameters()}
    for name in kept:
        if name not in shapes:
            raise MaskError(f"the network has no parameter {name!r}", where=where, hint="names of context.weights")
        check_kept(kept, name, shapes[name], where)
    return kept


def granularity_names() -> list[str]:
    """Return the names of the known granularities; `n:m` stands for patterns such as 2:4.

    Example:
        >>> {"filter", "n:m", "weight"} <= set(granularity_names())
        True
    """
    return sorted(d.facts.get("shown_as") or d.name for d in GRANULARITIES.definitions())


def get_granularity(name: str) -> Granularity:
    """Return a granularity: a registered name, a pattern such as `2:4`, or `package.module:class` of a registered one.

    Raises:
        ConfigError: unknown name, a pattern that keeps no weight or every weight, or a plug-in cannot be imported.
        TrustError: the owner did not agree to the code of a reference.

    Example:
        >>> get_granularity("1:4").fixed_sparsity, get_granularity("filter").unit_name
        (0.75, 'coupled channels')
    """
    if is_reference(name) or name in GRANULARITIES:
        found: Granularity = GRANULARITIES.get(name)
        if is_reference(name) or found.family is None:
            return found
    for definition in GRANULARITIES.definitions() if isinstance(name, str) else []:
        if not definition.facts:  # its source cannot be read, so it was registered in this process
            family = GRANULARITIES.get(definition.name).family
        else:
            family = definition.facts.get("family")
        if family is not None and re.fullmatch(family, name):
            member: Granularity = GRANULARITIES.get(definition.name).parse(name)
            return member
    raise _unknown(name)


def _unknown(name: object) -> ConfigError:
    hint = f"{unknown_name_hint(name, granularity_names())}; a pattern n:m is, for example, 2:4"
    return ConfigError(f"unknown granularity {name!r}", where="granularity", hint=hint)


def score_units(channels: Channels, ranking: Ranking) -> np.ndarray:
    """Compute one score per unit.

    Criteria of level `weight`: sum or mean over the weights of the unit's rows. Level `channel`: sum or mean over its
    layers.

    Raises:
        MaskError: a channel has no score.
    """
    total, count = np.zeros(channels.units), np.zeros(channels.units)
    by_weight = not ranking.criterion.scores_channels
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


def erk_factor(weights: Mapping[str, torch.Tensor], pool: str) -> float:
    """ERK factor of a pool: (sum of axes) / (product of axes), averaged over the weights that its name joins by `+`."""
    return float(np.mean([sum(weights[name].shape) / weights[name].numel() for name in pool.split("+")]))


def obeys_pattern(kept: torch.Tensor, n: int, m: int) -> bool:
    """Whether at most `n` of every `m` consecutive entries along axis 1 are True."""
    if kept.dim() < 2 or kept.shape[1] % m:
        return False
    return bool((kept.movedim(1, -1).reshape(-1, m).sum(1) <= n).all())
