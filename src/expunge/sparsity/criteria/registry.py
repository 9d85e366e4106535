"""Criteria: a score for every prunable weight, or for every channel; the lowest go first.

A criterion of kind `weight` scores single weights; a filter's score is then the sum or the mean (`reduce`) over its
weights. A criterion of kind `channel` scores channels only and cannot rank single weights. The data-driven ones get the
network, batches and loss explicitly (`Material`), never from a global place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import nn

from expunge.core.errors import ConfigError, MaskError, unknown_name_hint
from expunge.core.seeds import torch_generator
from expunge.training.loop import Objective, cross_entropy

Weights = Mapping[str, torch.Tensor]
Scores = dict[str, torch.Tensor]
Batch = tuple[torch.Tensor, torch.Tensor]


@dataclasses.dataclass(frozen=True, eq=False)
class Material:
    """What criteria may look at.

    Attributes:
        model: the network; criteria work on copies where they change anything.
        weights: the prunable weights, by plain name.
        batches: called for the batches of records a data-driven criterion reads, or None.
        input_shape: shape of one record, or None (SynFlow and filters need it).
        objective: mean loss of `B x K` logits.
        batch_statistics: BatchNorm normalises with the statistics of the batch (scoring at initialisation), instead of
            its running ones.
        seed: for criteria that draw.
    """

    model: nn.Module
    weights: Mapping[str, torch.Tensor]
    batches: Callable[[], Iterable[Batch]] | None = None
    input_shape: tuple[int, ...] | None = None
    objective: Objective = cross_entropy
    batch_statistics: bool = False
    seed: int = 0

    def data(self, criterion: str) -> Callable[[], Iterable[Batch]]:
        """The batches, or MaskError where there are none."""
        if self.batches is None:
            raise MaskError(
                f"the criterion {criterion} ranks weights by their gradients, so it needs records",
                where="criterion",
                hint="give it batches, or use magnitude, random or SynFlow",
            )
        return self.batches


Scorer = Callable[[Material], Scores]


@dataclasses.dataclass(frozen=True)
class Criterion:
    """A registered criterion.

    Attributes:
        name: the name its paper gives it.
        score: `Material -> scores`: by weight name (kind `weight`, shapes of the weights) or by the name of a weight or
            BatchNorm scale, one number a channel (kind `channel`).
        kind: `weight` or `channel`.
        reduce: how a filter's score follows from its weights' or its layers': `sum` or `mean`.
        needs_data: it reads records.
        source: paper and place.
    """

    name: str
    score: Scorer
    kind: str
    reduce: str
    needs_data: bool
    source: str


_CRITERIA: dict[str, Criterion] = {}


def register_criterion(
    name: str, *, kind: str = "weight", reduce: str = "mean", needs_data: bool = False, source: str = ""
) -> Callable[[Scorer], Scorer]:
    """Register a function `Material -> scores` under a name; see `Criterion`."""

    def keep(function: Scorer) -> Scorer:
        _CRITERIA[name] = Criterion(name, function, kind, reduce, needs_data, source)
        return function

    return keep


def criterion_names() -> list[str]:
    """The registered criteria."""
    return sorted(_CRITERIA)


def get_criterion(name: str) -> Criterion:
    """A registered criterion.

    Raises:
        ConfigError: unknown criterion.
    """
    if name not in _CRITERIA:
        by_fold = {known.casefold(): known for known in _CRITERIA}
        if name.casefold() in by_fold:
            return _CRITERIA[by_fold[name.casefold()]]
        raise ConfigError(f"unknown criterion {name!r}", hint=unknown_name_hint(name, _CRITERIA))
    return _CRITERIA[name]


def score(name: str, material: Material) -> Scores:
    """Scores of one criterion, on the CPU, in float32 or float64.

    Raises:
        ConfigError: unknown criterion.
        MaskError: it lacks what it needs, or scores are not finite.
    """
    found = get_criterion(name).score(material)
    result = {key: value.detach().cpu() for key, value in found.items()}
    for key, value in result.items():
        if not torch.isfinite(value).all():
            raise MaskError(f"the criterion {name} gives NaN or infinite scores: the weights are damaged", where=key)
    return result


def scores(name: str, weights: Weights) -> Scores:
    """Scores of a criterion that looks at weights alone (`magnitude`, `random`), on the CPU."""
    return score(name, Material(nn.Module(), weights))


@register_criterion("magnitude", source="Han et al., NeurIPS 2015")
def magnitude(material: Material) -> Scores:
    """Absolute value of the weight, |w| (lowest-weight-magnitude pruning)."""
    return {name: weight.detach().abs() for name, weight in material.weights.items()}


@register_criterion("random", source="control")
def uniform(material: Material) -> Scores:
    """Uniform numbers in [0, 1), seeded by the material's seed and the name of the weight."""
    return {
        name: torch.rand(weight.shape, generator=torch_generator(material.seed, "random criterion", name))
        for name, weight in material.weights.items()
    }
