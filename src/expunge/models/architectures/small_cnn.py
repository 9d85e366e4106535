"""A small convolutional network for 8 x 8 digits up to 32 x 32 colour images."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import nn

from expunge.models.architecture import register_model

from .layers import check_image_shape, check_positive_ints


@register_model("small-cnn", title="Small CNN")
class SmallCNN(nn.Module):
    """Blocks of 3x3 convolution (stride 2), BatchNorm, ReLU; global average pool; one linear layer.

    Args:
        input_shape: `C x H x W`, any size.
        classes: number of classes K.
        normalise: applied first.
        widths: output channels of the blocks.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        classes: int,
        normalise: nn.Module,
        widths: Sequence[int] = (16, 32, 64),
    ) -> None:
        super().__init__()
        channels, _, _ = check_image_shape("small-cnn", input_shape)
        self.normalise = normalise
        sizes = (channels, *check_positive_ints("small-cnn", "widths", widths))
        blocks = []
        for before, after in itertools.pairwise(sizes):
            convolution = nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)
            blocks.append(nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU()))
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(sizes[-1], classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`N x C x H x W` to `N x K` logits."""
        logits: torch.Tensor = self.classifier(self.blocks(self.normalise(x)).mean(dim=(2, 3)))
        return logits
