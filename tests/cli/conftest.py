"""A working directory with a small configuration, and the command line in this process."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import CONFIG, Line
from hostile_names import TRAP, Payload, forget_agreements

from expunge.cli.app import run


@pytest.fixture
def line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Line:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(CONFIG)
    return Line(tmp_path, capsys)


@pytest.fixture(scope="session")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained and a pruned model, for import: directories `trained` and `pruned`."""
    place = tmp_path_factory.mktemp("elsewhere")
    (place / "config.yaml").write_text(CONFIG)
    store = ["--store", str(place / "store")]
    assert run(["train", str(place / "config.yaml"), *store, "-o", str(place / "trained")]) == 0
    sparse = ["sparsity.sparsity=0.5", "sparsity.layers=[linear]"]
    assert run(["prune", str(place / "config.yaml"), *sparse, *store, "-o", str(place / "pruned")]) == 0
    return place


@pytest.fixture
def trap(line: Line) -> Iterator[Line]:
    """A directory full of traps, and the command line in it; modules of a test are unloaded."""
    before = set(sys.modules)
    forget_agreements()
    place = line.directory
    (place / "pickled").write_bytes(pickle.dumps(Payload()))
    (place / "hubconf.py").write_text(TRAP)
    (place / "sub").mkdir()
    (place / "sub" / "config.yaml").write_text(CONFIG)
    yield line
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None) or ""
        if file.startswith(str(place)):
            del sys.modules[name]
