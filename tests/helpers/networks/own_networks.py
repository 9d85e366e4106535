"""Networks as users have them, with plain training loops: nothing here is the package's."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from expunge.data.records import Records


def make_mlp() -> nn.Module:
    """A perceptron for the digits, without arguments, as in a user's script."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))


class SmallNet(nn.Module):
    """A convolutional network with BatchNorm, and an attribute of its own."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.note = "mine"
        self.features = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.head = nn.Linear(24, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.pool(self.features(x)).flatten(1))


def inputs(records: Records, rows: object) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and labels of some rows: images in [0, 1]."""
    chosen = np.asarray(list(rows))  # type: ignore[call-overload]
    assert records.features is not None
    return torch.from_numpy(records.features[chosen].astype(np.float32) / 255), torch.from_numpy(records.labels[chosen])


def train_own(model: nn.Module, records: Records, rows: object, *, steps: int = 60, rate: float = 0.02) -> nn.Module:
    """Train by Adam on all rows at once, as a user might."""
    x, y = inputs(records, rows)
    optimiser = torch.optim.Adam(model.parameters(), rate)
    model.train()
    for _ in range(steps):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    return model
