"""Small records for the tests of the data package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from expunge.data import Records


def images(count: int = 40, side: int = 8, channels: int = 3, seed: int = 0, **more: Any) -> Records:
    rng = np.random.default_rng(seed)
    return Records(
        name="small",
        record_ids=[f"r{i:03d}" for i in range(count)],
        labels=np.arange(count) % 4,
        class_names=("ant", "bee", "cow", "dog"),
        features=rng.integers(0, 256, (count, channels, side, side), dtype=np.uint8),
        **more,
    )


@pytest.fixture
def make_images() -> Callable[..., Records]:
    return images
