"""Criteria: a score for every prunable weight; the lowest go first."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from expunge.core.errors import ConfigError, unknown_name_hint

Weights = Mapping[str, torch.Tensor]
Criterion = Callable[[Weights], dict[str, torch.Tensor]]

_CRITERIA: dict[str, Criterion] = {}


def register_criterion(name: str) -> Callable[[Criterion], Criterion]:
    """Register a function `weights -> scores` of the same names and shapes under a name."""

    def keep(function: Criterion) -> Criterion:
        _CRITERIA[name] = function
        return function

    return keep


def criterion_names() -> list[str]:
    """The registered criteria."""
    return sorted(_CRITERIA)


def scores(name: str, weights: Weights) -> dict[str, torch.Tensor]:
    """Scores of one criterion, on the CPU.

    Raises:
        ConfigError: unknown criterion.
    """
    if name not in _CRITERIA:
        raise ConfigError(f"unknown criterion {name!r}", hint=unknown_name_hint(name, _CRITERIA))
    with torch.no_grad():
        return {key: value.detach().cpu() for key, value in _CRITERIA[name](weights).items()}


@register_criterion("magnitude")
def magnitude(weights: Weights) -> dict[str, torch.Tensor]:
    """Absolute value of the weight, |w| (lowest-weight-magnitude pruning)."""
    return {name: weight.detach().abs() for name, weight in weights.items()}
