"""How many coupled channels a combination of two convolutions has, counted by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from expunge.sparsity import find_channels

SHAPE = (2, 6, 6)


class Two(nn.Module):
    """Two convolutions of six channels, combined by an operation, then a classifier of the channels' means."""

    def __init__(self, join: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], width: int) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(2, 6, 3, padding=1)
        self.classifier = nn.Linear(width, 3)
        self.join = join

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.join(self.one(x).relu(), self.two(x).relu()).mean(dim=(2, 3)))


@pytest.mark.parametrize(
    ("width", "join", "units"),
    [
        (6, lambda a, b: a + b, 6),  # channel i of both goes together
        (12, lambda a, b: torch.cat([a, b], 1), 12),  # each is on its own
        (6, lambda a, b: a * 0.5 + b, 6),  # a number scales channels, it does not mix them
        (6, lambda a, b: a / 2 + b / 4, 6),
        (6, lambda a, b: torch.mul(a, 3.0) + b, 6),
        (6, lambda a, b: a * b, 0),  # a product of two channels is not zero because one of them is left out
        (6, lambda a, b: a / b.add(1.0), 0),
        (6, lambda a, b: a * torch.arange(6.0).view(6, 1, 1) + b, 0),
    ],
)  # fmt: skip
def test_units_of_two_convolutions(width: int, join: Callable, units: int) -> None:
    assert find_channels(Two(join, width), SHAPE).units == units


@pytest.mark.parametrize(("groups", "out", "units"), [(1, 6, 12), (6, 6, 6), (2, 6, 0), (3, 6, 0), (6, 12, 0)])
def test_units_of_grouped_convolutions(groups: int, out: int, units: int) -> None:
    """Depthwise: one channel in, the same out. Other groups, and several channels out of each, are not divided."""
    grouped = nn.Conv2d(6, out, 3, groups=groups)
    model = nn.Sequential(nn.Conv2d(2, 6, 3), grouped, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(out, 3))
    assert find_channels(model, SHAPE).units == units
