"""The laboratory as a fixture."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from laboratory import Lab, build

_COUNT = itertools.count()


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.syspath_prepend(str(tmp_path))
    return build(tmp_path, f"fakelab{next(_COUNT)}")
