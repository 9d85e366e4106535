"""Networks for records `1 x 8 x 8` whose weights are in layers other than convolutions and linear layers."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class AnyLayers(nn.Module):
    """One layer of a kind (`name`) before a linear head."""

    def __init__(self, name: str, classes: int = 10) -> None:
        super().__init__()
        self.kind = name
        if name == "transposed":
            self.first: nn.Module = nn.ConvTranspose2d(1, 2, 3, padding=1)
            width = 128
        elif name == "transposed1d":
            self.first, width = nn.ConvTranspose1d(8, 4, 3, padding=1), 32
        elif name == "embedding":
            self.first, width = nn.Embedding(17, 2), 128
        elif name in ("lstm", "gru"):
            self.first, width = getattr(nn, name.upper())(8, 6, batch_first=True), 48
        elif name == "attention":
            self.first, width = nn.MultiheadAttention(8, 2, batch_first=True), 64
        elif name == "encoder":
            self.first = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
            width = 64
        elif name == "raw":
            self.table, width = nn.Parameter(torch.randn(64, 5)), 5
        elif name == "scale":
            self.first, width = nn.BatchNorm2d(1), 64
        else:
            self.first, width = nn.Dropout(0.5), 64
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.squeeze(1)  # B x 8 x 8
        if self.kind == "embedding":
            hidden = self.first((x.flatten(1) * 16).round().long().clamp(0, 16))
        elif self.kind == "raw":
            hidden = x.flatten(1) @ self.table
        elif self.kind in ("lstm", "gru"):
            hidden = self.first(rows)[0]
        elif self.kind == "attention":
            hidden = self.first(rows, rows, rows, need_weights=False)[0]
        elif self.kind in ("encoder", "transposed1d"):
            hidden = self.first(rows)
        else:
            hidden = self.first(x)
        return self.head(functional.relu(hidden.flatten(1)))


def make(input_shape: tuple[int, ...], classes: int, kind: str = "transposed") -> nn.Module:
    """The factory of these networks."""
    return AnyLayers(kind, classes)


class Noisy(AnyLayers):
    """Draws numbers in training by functions of torch, not by a dropout layer."""

    def __init__(self) -> None:
        super().__init__("scale")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x + 0.1 * torch.randn_like(x) if self.training else x)


class Branching(AnyLayers):
    """Branches on values, which vmap cannot."""

    def __init__(self) -> None:
        super().__init__("scale")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x if float(x.sum()) > 0 else -x)


class TiedHeads(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(64, 64), nn.Linear(64, 64)
        self.two.weight = self.one.weight
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`N x 1 x 8 x 8` to `N x 10` logits."""
        return self.head(self.two(torch.relu(self.one(x.flatten(1)))))


class FrozenFirst(nn.Module):
    """A frozen layer before a trainable one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(64, 12), nn.Linear(12, 10)
        self.first.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`N x 1 x 8 x 8` to `N x 10` logits."""
        return self.head(torch.relu(self.first(x.flatten(1))))


def make_frozen() -> nn.Module:
    """A network without a trainable parameter."""
    return FrozenFirst().requires_grad_(False)
