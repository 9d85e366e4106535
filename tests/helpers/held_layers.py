"""A network whose layers lie in an attribute called `module` or `layers`; named as `held_layers:make`."""

from __future__ import annotations

import torch
from torch import nn


class Held(nn.Module):
    """Everything lies in `module`, if it is asked for, or in `layers`."""

    def __init__(self, channels: int, classes: int, inside: bool) -> None:
        super().__init__()
        layers = nn.Sequential(
            *(nn.Conv2d(channels, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8)),
            *(nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, classes)),
        )
        self.where = "module" if inside else "layers"
        self.add_module(self.where, layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return getattr(self, self.where)(x)


def make(input_shape: tuple[int, ...], classes: int, inside: bool = True) -> nn.Module:
    return Held(input_shape[0], classes, inside)
