"""Networks and losses in float64, which show that two computations are the same up to rounding."""

from __future__ import annotations

import os

import torch
from torch import nn
from torch.nn import functional

from expunge.training import mean_over_records


class InDouble(nn.Module):
    """A network in float64 for float32 records."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network(x.to(next(self.parameters()).dtype))
        return logits


@mean_over_records
def double_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The cross-entropy, not rounded to float32."""
    return functional.cross_entropy(logits, labels)


def apart(one: nn.Module, other: nn.Module) -> float:
    """Largest difference of a weight or a running statistic."""
    a, b = one.state_dict(), other.state_dict()
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


class Centred(nn.Module):
    """A layer whose output for a record depends on the others, unlike BatchNorm's without the library's knowledge."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0)


class Averaging(nn.Module):
    """Dropout, and a running mean of its own that is subtracted from later batches."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.4)
        self.register_buffer("mean", torch.zeros(features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        dropped: torch.Tensor = self.drop(x) - self.mean
        if self.training:
            self.mean.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
        return dropped


class FailingElsewhere(nn.Module):
    """Fails in training on some records, in other processes than the one that made it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.process = nn.Linear(64, 10), os.getpid()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and os.getpid() != self.process:
            raise ValueError("a mistake in the network")
        logits: torch.Tensor = self.layer(x.flatten(1))
        return logits
