"""Fixtures of the patches room."""

from __future__ import annotations

import pytest
from patch_networks import NETWORKS, build
from torch import nn


@pytest.fixture(params=NETWORKS)
def any_network(request: pytest.FixtureRequest) -> tuple[nn.Module, tuple[int, ...]]:
    """A network of the zoo and the shape of its records."""
    return build(request.param)
