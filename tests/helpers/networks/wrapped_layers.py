"""A network with all layers in an attribute called `module` or `layers`; used as `wrapped_layers:make`."""

from __future__ import annotations

import torch
from torch import nn


class WrappedLayers(nn.Module):
    """All layers are in `module` with `in_module`, else in `layers`."""

    def __init__(self, channels: int, classes: int, in_module: bool) -> None:
        super().__init__()
        layers = nn.Sequential(
            *(nn.Conv2d(channels, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8)),
            *(nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, classes)),
        )
        self.attribute = "module" if in_module else "layers"
        self.add_module(self.attribute, layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return getattr(self, self.attribute)(x)


def make(input_shape: tuple[int, ...], classes: int, in_module: bool = True) -> nn.Module:
    return WrappedLayers(input_shape[0], classes, in_module)
