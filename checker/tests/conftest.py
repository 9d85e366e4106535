"""Fixtures of the checker's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from checker_case import written


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny MLP with three certified points."""
    folder = tmp_path_factory.mktemp("small") / "certificate"
    written(folder, "mlp")
    return folder
