"""Coupled channels do not depend on whether operands are passed by position or by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from expunge.sparsity import Rule, find_channels, make_mask, shrink

SHAPE = (2, 6, 6)
Join = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Two(nn.Module):
    """Two convolutions whose outputs are combined by an operation, and a classifier."""

    def __init__(self, join: Join, width: int) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(2, 6, 3, padding=1)
        self.classifier = nn.Linear(width, 3)
        self.join = join

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        both = self.join(self.one(x).relu(), self.two(x).relu())
        return self.classifier(both.mean(dim=(2, 3)))


VARIANTS: dict[str, tuple[int, Join, Join]] = {
    "sum": (6, lambda a, b: a + b, lambda a, b: torch.add(a, other=b)),
    "sum, all by name": (6, lambda a, b: a + b, lambda a, b: torch.add(other=b, input=a)),
    "sum of a tensor with itself": (6, lambda a, b: a + b + b, lambda a, b: torch.add(a, other=b).add(other=b)),
    "cat": (12, lambda a, b: torch.cat([a, b], 1), lambda a, b: torch.cat(tensors=[a, b], dim=1)),
    "scaled": (6, lambda a, b: a * 0.5 + b / 2, lambda a, b: torch.mul(a, other=0.5) + torch.div(b, other=2)),
    "pad": (
        6,
        lambda a, b: a + functional.pad(b[:, :, 1:-1, 1:-1], (1, 1, 1, 1), "constant", 0.0),
        lambda a, b: a + functional.pad(b[:, :, 1:-1, 1:-1], (1, 1, 1, 1), mode="constant", value=0.0),
    ),
}  # fmt: skip


def units(join: Join, width: int) -> dict[tuple[str, int], list[int]]:
    return {axis: vector.tolist() for axis, vector in find_channels(Two(join, width), SHAPE).axes.items()}


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_operands_by_name_and_by_position_give_the_same_units(variant: str) -> None:
    width, by_position, by_name = VARIANTS[variant]
    assert units(by_position, width) == units(by_name, width)


@pytest.mark.parametrize(
    ("width", "join"),
    [
        (6, lambda a, b: torch.add(a, other=1.0) + b),
        (6, lambda a, b: functional.pad(input=a, pad=(1, 1))[:, :, :, 1:-1] + b),
        *((6, lambda a, b, v=v: functional.pad(a + b, (1, 1), "constant", v)) for v in (-1.0, 0.0, 0.5, 1)),
        (12, lambda a, b: functional.pad(a, (0, 0, 0, 0, 0, 6), value=-1.0) + torch.cat([a, b], 1)),
        (6, lambda a, b: functional.pad(a + b, (1, 1, 1, 1), mode="replicate")),
        (6, lambda a, b: torch.sub(a, other=b, alpha=2)),
        (12, lambda a, b: torch.cat(tensors=(a, b), dim=1)),
        (12, lambda a, b: torch.cat(dim=-3, tensors=(a, b))),
    ],
)  # fmt: skip
def test_no_way_of_writing_an_operation_raises(width: int, join: Any) -> None:
    """Supported or not: removing channels changes no output, or no channel is removed."""
    torch.manual_seed(0)
    model = Two(join, width)
    if not find_channels(model, SHAPE).units:
        return
    mask, _ = make_mask(model, Rule("filter-l2", "filter", sparsity=0.5), input_shape=SHAPE)
    assert shrink(model, mask, SHAPE).difference < 1e-4
