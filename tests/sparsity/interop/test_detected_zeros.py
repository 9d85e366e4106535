"""What counts as pruned in a weights file: zeros of weights with two axes or more, not of scales and biases."""

from __future__ import annotations

import pytest
import torch

from expunge.sparsity import detect_format


def state(zeros: int) -> dict[str, torch.Tensor]:
    """A linear layer of 8 x 10 with some zeros, and a BatchNorm layer of which half of the scales are 0."""
    weight = torch.ones(8, 10)
    weight.view(-1)[:zeros] = 0
    scale = torch.ones(8)
    scale[:4] = 0
    return {"0.weight": weight, "0.bias": torch.zeros(8), "1.weight": scale, "1.running_mean": torch.zeros(8)}


@pytest.mark.parametrize(
    ("zeros", "found"), [(0, "dense"), (20, "baked-zeros"), (25, "baked-zeros"), (1, "baked-zeros")]
)
def test_only_zeros_of_weights_count(zeros: int, found: str) -> None:
    detected = detect_format(state(zeros))
    assert detected.format == found
    assert detected.sparsity == zeros / 80
    assert detected.granularity == (None if not zeros else "filter" if zeros == 20 else "weight")
