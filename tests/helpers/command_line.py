"""The command line in tests."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from expunge.cli.app import run

PLAN = """\
name: tiny
base:
  data: {source: digits}
  model: {name: mlp, options: {widths: [8]}}
  training: {recipe: one-cycle, epochs: 1}
  forget: {by: random, fraction: 0.1}
  runtime: {device: cpu}
grid:
  method:
    Retrain: {name: Retrain}
    GA: {name: GA, options: {epochs: 1}}
"""
CONFIG = """\
data: {source: digits}
model: {name: mlp, options: {widths: [12]}}
training: {recipe: one-cycle, epochs: 2}
forget: {by: random, fraction: 0.05}
method: {name: FT, options: {epochs: 1}}
runtime: {device: cpu}
"""


@dataclasses.dataclass(frozen=True)
class CommandResult:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Line:
    """The command line in one working directory."""

    def __init__(self, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.directory, self._capsys = directory, capsys

    def __call__(self, *arguments: str) -> CommandResult:
        self._capsys.readouterr()
        code = run(arguments)
        captured = self._capsys.readouterr()
        return CommandResult(code, captured.out, captured.err)
