"""Fixtures of the tests of patches."""

from __future__ import annotations

import pytest
import torch
from patch_networks import NETWORKS, build
from torch import nn

from expunge.patches.network.regions import Box
from expunge.patches.network.trace import trace


@pytest.fixture(params=NETWORKS)
def any_network(request: pytest.FixtureRequest) -> tuple[nn.Module, tuple[int, ...]]:
    """A small network and the shape of its records."""
    return build(request.param)


@pytest.fixture(scope="module")
def blobs():
    """Three Gaussian classes in the unit square of 6 dimensions and a small network trained on them."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.rand(3, 6, generator=generator)
    y = torch.arange(240) % 3
    x = (centres[y] + 0.12 * torch.randn(240, 6, generator=generator)).clamp(0, 1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
        optimiser = torch.optim.Adam(model.parameters(), 0.02)
        for _ in range(150):
            loss = nn.functional.cross_entropy(model(x), y)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return model.eval(), trace(model, (6,)), x, y, Box.of((6,))
