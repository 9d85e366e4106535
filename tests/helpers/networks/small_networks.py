"""Small networks, masks and recipes for the tests of the loop."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from expunge.core.hashing import hash_tensors
from expunge.core.mask import Mask, MaskProvenance
from expunge.training import Recipe


def network(seed: int = 0, *, batch_norm: bool = True, dropout: float = 0.0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2, bias=False),
            nn.BatchNorm2d(4) if batch_norm else nn.Identity(),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(36, 10),
        )


def random_mask(model: nn.Module, sparsity: float = 0.5) -> Mask:
    generator = torch.Generator().manual_seed(1)
    weights = {n: p for n, p in model.named_parameters() if p.dim() > 1}
    kept = {n: torch.rand(p.shape, generator=generator) > sparsity for n, p in weights.items()}
    return Mask(kept, MaskProvenance("random"))


def state_hash(model: nn.Module) -> str:
    return hash_tensors(model.state_dict())


def recipe(**changes: Any) -> Recipe:
    base = Recipe(epochs=3, batch_size=32, learning_rate=0.05, momentum=0.9, weight_decay=5e-4)
    return dataclasses.replace(base, **changes)


class Unused(nn.Module):
    """A network with a layer that its forward does not use."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(features, classes), nn.Linear(features, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.used(x)
        return logits


def unused(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    return Unused(input_shape[0], classes)
