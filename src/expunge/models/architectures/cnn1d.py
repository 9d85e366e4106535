"""A one-dimensional convolutional network for windows of sensor signals."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import nn

from expunge.core.errors import ConfigError, ModelError
from expunge.models.architecture import register_model

from .layers import check_positive_ints


@register_model("cnn1d", title="1-D CNN")
class CNN1D(nn.Module):
    """Blocks of 1-D convolution (stride 2), BatchNorm, ReLU; global average pool over time; one linear layer.

    Args:
        input_shape: `C x T`: channels and time steps of a window.
        classes: number of classes K.
        normalise: applied first.
        widths: output channels of the blocks.
        kernel: time steps of a convolution, an odd number.

    Raises:
        ModelError: records are not windows `C x T`.
        ConfigError: the kernel is even.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        classes: int,
        normalise: nn.Module,
        widths: Sequence[int] = (32, 64, 128),
        kernel: int = 5,
    ) -> None:
        super().__init__()
        if len(input_shape) != 2:
            raise ModelError(
                f"cnn1d takes windows of signals (C x T), the records have shape {input_shape}",
                where="cnn1d",
                hint="mlp takes any shape; small-cnn takes images (C x H x W)",
            )
        (kernel,) = check_positive_ints("cnn1d", "kernel", (kernel,))
        if kernel % 2 == 0:
            raise ConfigError(f"kernel of cnn1d is an odd number, not {kernel}", where="kernel")
        self.normalise = normalise
        sizes = (input_shape[0], *check_positive_ints("cnn1d", "widths", widths))
        blocks = []
        for before, after in itertools.pairwise(sizes):
            convolution = nn.Conv1d(before, after, kernel, stride=2, padding=kernel // 2, bias=False)
            blocks.append(nn.Sequential(convolution, nn.BatchNorm1d(after), nn.ReLU()))
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(sizes[-1], classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`N x C x T` to `N x K` logits."""
        logits: torch.Tensor = self.classifier(self.blocks(self.normalise(x)).mean(dim=2))
        return logits
