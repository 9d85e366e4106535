"""Multi-layer perceptron for any input."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import nn

from expunge.models.architecture import register_model

from .layers import check_positive_ints


@register_model("mlp", title="MLP")
class MLP(nn.Module):
    """Fully connected layers with ReLU; any input is flattened.

    Args:
        input_shape: shape of one record, any.
        classes: number of classes K.
        normalise: applied first.
        widths: sizes of the hidden layers; empty for multinomial logistic regression.
        batch_norm: use a BatchNorm layer after every hidden linear layer (which then has no bias).
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        classes: int,
        normalise: nn.Module,
        widths: Sequence[int] = (64, 64),
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.normalise = normalise
        sizes = (math.prod(input_shape), *check_positive_ints("mlp", "widths", widths))
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(sizes):
            layers.append(nn.Linear(before, after, bias=not batch_norm))
            if batch_norm:
                layers.append(nn.BatchNorm1d(after))
            layers.append(nn.ReLU())
        self.hidden = nn.Sequential(*layers)
        self.classifier = nn.Linear(sizes[-1], classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`N x ...` to `N x K` logits."""
        logits: torch.Tensor = self.classifier(self.hidden(self.normalise(x).flatten(1)))
        return logits
