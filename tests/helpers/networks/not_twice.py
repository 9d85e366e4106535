"""Networks for records `1 x 8 x 8` with operations that have no second derivative."""

from __future__ import annotations

import torch
from torch import nn


class Distances(nn.Module):
    """Distances between maps of the rows: `torch.cdist` after a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(8, 6), nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`N x 1 x 8 x 8` to `N x 10` logits."""
        rows = self.first(x.squeeze(1))
        return self.head(torch.cdist(rows, rows + 1).flatten(1))


class Bag(nn.Module):
    """An embedding bag before a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(17, 8), nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`N x 1 x 8 x 8` to `N x 10` logits."""
        return self.head(self.bag((x.flatten(1) * 16).long()))
