"""Criteria: each gives a score to every prunable weight or channel, and the lowest scores are pruned first.

A criterion of level `weight` scores single weights; the score of a filter is then the sum or mean (`reduction`) over
its weights. A criterion of level `channel` scores whole channels and cannot rank single weights. Data-driven criteria
get the network, the batches and the loss explicitly (`ScoringContext`), never from global state.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import NoReturn

import torch
from torch import nn

from expunge.core.errors import ConfigError, MaskError, with_article
from expunge.core.registry import CRITERIA
from expunge.core.registry.custom_code import naming
from expunge.core.show import repr_fields
from expunge.training.loop import Objective, cross_entropy

Weights = Mapping[str, torch.Tensor]
Scores = dict[str, torch.Tensor]
Batch = tuple[torch.Tensor, torch.Tensor]


@dataclasses.dataclass(frozen=True, eq=False)
class ScoringContext:
    """The inputs of a criterion.

    Attributes:
        model: the network; a criterion that changes anything works on a copy.
        weights: the prunable weights, by plain parameter name.
        batches: called for the batches of records that a data-driven criterion reads, or None.
        input_shape: shape of one record, or None (SynFlow and granularity `filter` need it).
        objective: mean loss of `B x K` logits.
        batch_statistics: BatchNorm normalises with the statistics of the batch (for scores at initialisation) instead
            of its running statistics.
        seed: for criteria that draw random numbers.
    """

    model: nn.Module
    weights: Mapping[str, torch.Tensor]
    batches: Callable[[], Iterable[Batch]] | None = None
    input_shape: tuple[int, ...] | None = None
    objective: Objective = cross_entropy
    batch_statistics: bool = False
    seed: int = 0

    __repr__ = repr_fields

    def require_batches(self, criterion: str) -> Callable[[], Iterable[Batch]]:
        """Return `batches`, or raise MaskError if there are none (needs_data may be missing)."""
        if self.batches is None:
            found = CRITERIA.find_registered(criterion)
            if found is not None and not found.needs_data:
                raise MaskError(
                    "reads records, but its registration does not say so",
                    where=f"criterion {criterion}",
                    hint="@register_criterion(..., needs_data=True)",
                )
            raise MaskError(
                f"the criterion {criterion} ranks weights by their gradients, so it needs records",
                where="criterion",
                hint="pass batches, or use magnitude, random or SynFlow",
            )
        return self.batches


Scorer = Callable[[ScoringContext], Scores]


@dataclasses.dataclass(frozen=True)
class Criterion:
    """A registered criterion.

    Attributes:
        name: the name that its paper gives it; or the reference `package.module:name` by which it was chosen.
        score: function `ScoringContext -> scores`. Level `weight`: scores by weight name, in the shapes of the weights.
            Level `channel`: one score per channel, by the name of a weight or of a BatchNorm scale.
        level: `weight` or `channel`.
        reduction: how the score of a filter follows from the scores of its weights or layers: `sum` or `mean`.
        needs_data: whether it reads records.
        default_rounds: in how many rounds pruning at initialisation computes its scores, unless it is given a number.
        citation: paper and equation.
    """

    name: str
    score: Scorer
    level: str = "weight"
    reduction: str = "mean"
    needs_data: bool = False
    default_rounds: int = 1
    citation: str = ""

    @property
    def scores_channels(self) -> bool:
        """Whether it scores whole channels, and cannot rank single weights."""
        return self.level == _LEVELS[1]

    __repr__ = repr_fields


_LEVELS = ("weight", "channel")
_REDUCTIONS = ("sum", "mean")


def register_criterion(
    name: str,
    *,
    level: str = "weight",
    reduction: str = "mean",
    needs_data: bool = False,
    default_rounds: int = 1,
    citation: str = "",
) -> Callable[[Scorer], Scorer]:
    """Register a function `ScoringContext -> scores` as a criterion; see `Criterion` for the arguments.

    Raises:
        ConfigError: the name is registered by other code already, or a fact has a value that it cannot have.

    Example:
        >>> import torch
        >>> from expunge.core.registry import CRITERIA
        >>> with CRITERIA.temporary():  # only for this example
        ...     @register_criterion("smallest-square", citation="an example")
        ...     def square(context: ScoringContext) -> Scores:
        ...         return {name: weight.detach() ** 2 for name, weight in context.weights.items()}
        ...     score_weights("Smallest-Square", {"w": torch.tensor([[-2.0, 0.5]])})["w"].tolist()
        [[4.0, 0.25]]
    """
    if level not in _LEVELS or reduction not in _REDUCTIONS or default_rounds < 1:
        raise ConfigError(
            f"level = {level!r}, reduction = {reduction!r}, default_rounds = {default_rounds!r}: the level is `weight` "
            "or `channel`, the reduction `sum` or `mean`, and there is at least one round",
            where=f"criterion {name}",
        )

    def register(function: Scorer) -> Scorer:
        CRITERIA.add(name, Criterion(name, function, level, reduction, needs_data, default_rounds, citation), function)
        return function

    return register


def criterion_names() -> list[str]:
    """Return the names of the known criteria.

    Example:
        >>> {"SNIP", "magnitude", "random"} <= set(criterion_names())
        True
    """
    return CRITERIA.names()


def get_criterion(name: str) -> Criterion:
    """Return a criterion: a registered name, in upper or lower case, or `package.module:function` of a registered one.

    Raises:
        ConfigError: unknown criterion, or a plug-in cannot be imported.
        TrustError: the owner did not agree to the code of a reference.

    Example:
        >>> criterion = get_criterion("snip")
        >>> criterion.name, criterion.level, criterion.reduction, criterion.needs_data
        ('SNIP', 'weight', 'sum', True)
    """
    criterion: Criterion = CRITERIA.get(name)
    return criterion


def compute_scores(name: str, context: ScoringContext) -> Scores:
    """Compute the scores of one criterion, on the CPU, in float32 or float64.

    Args:
        name: see `get_criterion`.
        context: network, weights, batches and loss.

    Raises:
        ConfigError: unknown criterion.
        MaskError: the context lacks what the criterion needs, scores are not finite or have another form, or the
            code of a custom criterion failed.

    Example:
        Norms ||F_c||_2 of the two filters of a convolution without bias:

        >>> import torch
        >>> from expunge.sparsity import ScoringContext, prunable_weights
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 2, bias=False))
        >>> with torch.no_grad():
        ...     _ = model[0].weight.copy_(torch.tensor([[3.0, 4, 0, 0], [0, 0, 0, -12]]).reshape(2, 1, 2, 2))
        >>> compute_scores("filter-l2", ScoringContext(model, prunable_weights(model)))["0.weight"].tolist()
        [5.0, 12.0]
    """
    criterion = get_criterion(name)
    with naming("criterion", name, criterion.score, MaskError):
        found = criterion.score(context)
    _check_form(criterion, found, context)
    result = {key: value.detach().cpu() for key, value in found.items()}
    for key, value in result.items():
        if not torch.isfinite(value).all():
            raise MaskError(f"the criterion {name} gives NaN or infinite scores{_find_cause(context)}", where=key)
    return result


def _find_cause(context: ScoringContext) -> str:
    """Why scores are not finite, as far as the values of the network show it."""
    tensors = [*context.weights.values(), *context.model.parameters(), *context.model.buffers()]
    if all(torch.isfinite(tensor).all() for tensor in tensors):
        return ", although every weight is finite: its formula, or the records that it reads, are the cause"
    return ": the weights are damaged"


def _check_form(criterion: Criterion, found: object, context: ScoringContext) -> None:
    """Raise MaskError unless scores are tensors by name: of every weight in its shape, or (by channel) of rows."""

    def refuse(what: str) -> NoReturn:
        names = "one score for each row" if criterion.scores_channels else "a tensor for each weight, in its shape"
        hint = f"a criterion of level `{criterion.level}` returns {names}, by the names of context.weights"
        raise MaskError(what, where=f"criterion {criterion.name}", hint=hint)

    if not isinstance(found, Mapping):
        refuse(f"returned a value of type {type(found).__name__}, not a dictionary of tensors")
    for key, value in found.items():
        if not isinstance(value, torch.Tensor):
            refuse(f"the scores of {key} are {with_article(type(value).__name__)}, not a tensor")
        if value.is_complex():
            refuse(f"the scores of {key} are complex numbers")
    for key, weight in context.weights.items():
        if key not in found:
            if criterion.scores_channels:
                continue  # scores of BatchNorm scales have other names; the granularity reports what is missing
            refuse(f"returned no scores for {key}")
        wanted = tuple(weight.shape[:1]) if criterion.scores_channels else tuple(weight.shape)
        if tuple(found[key].shape) != wanted:
            refuse(f"the scores of {key} have the shape {tuple(found[key].shape)}, not {wanted}")


def score_weights(name: str, weights: Weights) -> Scores:
    """Compute the scores of a criterion that reads weights only (`magnitude`, `random`), on the CPU.

    Args:
        name: `magnitude` or `random`.
        weights: tensors by parameter name.

    Raises:
        ConfigError: unknown criterion.
        MaskError: the criterion needs more than weights, or scores are not finite.

    Example:
        >>> import torch
        >>> score_weights("magnitude", {"w": torch.tensor([[-2.0, 0.5]])})["w"].tolist()
        [[2.0, 0.5]]
    """
    return compute_scores(name, ScoringContext(nn.Module(), weights))
