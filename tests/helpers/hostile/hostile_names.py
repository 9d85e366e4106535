"""Payloads of hostile inputs, and what their tests share. Every payload writes a marker, which must not appear."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandResult, Line

MARKER = "MARKER"

APPLY = "!!python/object/apply:os.mkdir [MARKER]"


class Payload:
    """Unpickled, it writes the marker."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (MARKER,)


TRAP = f"""
import os
os.makedirs({MARKER!r}, exist_ok=True)
from torch import nn
def make(classes=10, **options): return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
"""
QUIET = """
import functools, os, yaml
from yaml import unsafe_load
from torch import nn
loader = yaml.unsafe_load
bound = functools.partial(yaml.unsafe_load, "!!python/object/apply:os.mkdir [MARKER]")
def make(input_shape, classes): return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
def clean(path): os.mkdir(path)
class Net(nn.Linear):
    def __init__(self, classes): super().__init__(64, classes)
    def forward(self, x): return super().forward(x.flatten(1))
"""


def forget_agreements() -> None:
    """Agreements last for the process; reset them, so that each test behaves like a new process."""
    with contextlib.suppress(ImportError):
        importlib.import_module("expunge.core.trust.gate")._AGREED.clear()


def safe(line: Line, result: CommandResult | None = None) -> None:
    assert not (line.directory / MARKER).exists(), "the payload ran"
    if result is not None:
        assert result.code in (1, 2), (result.out, result.err)
        assert "Traceback" not in result.err
        assert "bug of expunge" not in result.err


def installed(trap: Line, monkeypatch: pytest.MonkeyPatch, name: str = "trap") -> Path:
    """A package on Python's path, outside of the working directory; importing any part of it is a trap."""
    site = trap.directory.parent / f"{trap.directory.name}-site"
    (site / name).mkdir(parents=True)
    for file in ("__init__.py", "nets.py"):
        (site / name / file).write_text(TRAP)
    monkeypatch.syspath_prepend(str(site))
    return site


def settings(name: str, options: dict[str, Any]) -> str:
    return "model=" + json.dumps({"name": name, "options": options})


def send(place: Path, elsewhere: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A model directory whose trained.json was changed by somebody."""
    sent = place / "sent"
    shutil.copytree(elsewhere / "trained", sent)
    body = json.loads((sent / "trained.json").read_text())
    change(body["provenance"]["architecture"])
    (sent / "trained.json").write_text(json.dumps(body))
    return sent
