"""Criteria that read nothing but single weights: magnitude, and random numbers as a control."""

from __future__ import annotations

import torch

from expunge.core.seeds import torch_generator

from .registry import Scores, ScoringContext, register_criterion


@register_criterion("magnitude", citation="Han et al., NeurIPS 2015")
def magnitude(context: ScoringContext) -> Scores:
    """Absolute value of the weight, |w| (lowest-weight-magnitude pruning)."""
    return {name: weight.detach().abs() for name, weight in context.weights.items()}


@register_criterion("random", citation="control")
def random_uniform(context: ScoringContext) -> Scores:
    """Uniform random numbers in [0, 1), seeded by the context's seed and the name of the weight."""
    return {
        name: torch.rand(weight.shape, generator=torch_generator(context.seed, "random criterion", name))
        for name, weight in context.weights.items()
    }
