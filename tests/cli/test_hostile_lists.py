"""Hostile inputs: the owner's list of trusted packages, plans and workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import Line
from hostile_names import APPLY, MARKER, QUIET, TRAP, installed, safe, send, settings

# ---- the owner's list


@pytest.fixture
def listed(trap: Line, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's list of trusted packages, with one package."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(trap.directory / "home"))
    (trap.directory / "home" / "expunge").mkdir(parents=True, mode=0o700)
    path = trap.directory / "home" / "expunge" / "trust"
    path.write_text("# mine\ntrap  # networks\n")
    path.chmod(0o600)
    path.parent.chmod(0o700)
    return path


def test_the_list_lets_an_installed_package_run(trap: Line, listed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(trap, monkeypatch)
    assert trap("check", "config.yaml", "model={name: 'trap.nets:make'}").code == 0
    assert (trap.directory / MARKER).exists()


def test_the_list_does_not_reach_the_current_directory(trap: Line, listed: Path, elsewhere: Path) -> None:
    (trap.directory / "trap.py").write_text(TRAP)
    sent = send(trap.directory, elsewhere, lambda body: body.update(name="trap:make", options={}))
    safe(trap, trap("export", str(sent), "-o", "out.safetensors"))


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_list_that_others_can_write(trap: Line, listed: Path, monkeypatch: pytest.MonkeyPatch, mode: int) -> None:
    installed(trap, monkeypatch)
    listed.chmod(mode)
    result = trap("check", "config.yaml", "model={name: 'trap.nets:make'}")
    safe(trap, result)
    assert "can be written by others" in result.err
    listed.chmod(0o600)
    listed.parent.chmod(0o777)
    result = trap("check", "config.yaml", "model={name: 'trap.nets:make'}")
    safe(trap, result)
    assert "can be written by others" in result.err


@pytest.mark.parametrize("name", ["yaml", "os", "torch", "expunge", "trap.nets", "../trap", "", "trap;x"])
def test_what_cannot_be_trusted(trap: Line, listed: Path, name: str) -> None:
    result = trap("check", "config.yaml", settings("yaml:unsafe_load", {"stream": APPLY}), "--trust", name)
    safe(trap, result)
    assert result.code == 2
    if name:
        listed.write_text(f"{name}\n")
        result = trap("check", "config.yaml", settings("yaml:unsafe_load", {"stream": APPLY}))
        safe(trap, result)
        assert f"{listed}:1" in result.err


# ---- plans and workers

PLAN = """\
name: hostile
base:
  data: {source: digits}
  model: {name: NAME}
  training: {recipe: one-cycle, epochs: 1}
  forget: {by: random, fraction: 0.05}
  runtime: {device: cpu}
grid: {method.name: [Retrain]}
"""
#: Files that take the place of modules which a worker (or what it imports) needs.
SHADOWS = ("secrets", "json", "random", "numpy", "torch", "yaml", "expunge", "sitecustomize", "usercustomize", "rich")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_plan_runs_no_untrusted_code(trap: Line, monkeypatch: pytest.MonkeyPatch, workers: str) -> None:
    installed(trap, monkeypatch)
    for name in ("yaml:unsafe_load", "trap.nets:make"):
        (trap.directory / "plan.yaml").write_text(PLAN.replace("NAME", f"'{name}'"))
        result = trap("bench", "run", "plan.yaml", "--workers", workers)
        safe(trap, result)
        assert name in result.err
        assert trap("bench", "status", "plan.yaml", "--explain").code == 0
        safe(trap)


def test_a_worker_is_not_trusted_with_more_than_its_plan(trap: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker trusts only the packages in its message; without the package it refuses."""
    from expunge.experiments import load_plan
    from expunge.experiments.scheduler import worker

    installed(trap, monkeypatch)
    (trap.directory / "plan.yaml").write_text(PLAN.replace("NAME", "'trap.nets:make'"))
    order: dict[str, Any] = {"plan": "plan.yaml", "overrides": [], "store": "store", "since": 0.0, "threads": 1}
    order |= {"hash": load_plan("plan.yaml").hash, "only": {}, "stages": {}}
    for command_line, hint in ((True, "--trust trap"), (False, "trust=['trap']")):
        trust = {"packages": [], "here": [], "command_line": command_line}
        assert worker.main(json.dumps({**order, "store": f"store{command_line}", "trust": trust})) == 1
        safe(trap)
        failures = [path.read_text() for path in (trap.directory / f"store{command_line}" / "failures").iterdir()]
        assert any("not agreed" in text for text in failures)
        assert any(hint in text for text in failures)


def test_modules_near_a_plan_do_not_shadow_others_in_workers(trap: Line) -> None:
    """Two real workers, started as users start them, in a directory with files that shadow modules of Python."""
    (trap.directory / "quiet.py").write_text(QUIET)
    (trap.directory / "plan.yaml").write_text(PLAN.replace("NAME", "'quiet:make'"))
    for name in SHADOWS:
        (trap.directory / f"{name}.py").write_text(TRAP)
    start = "import sys; sys.path[:] = [p for p in sys.path if p]; from expunge.cli import main; main()"
    command = [sys.executable, "-c", start, "bench", "run", "plan.yaml", "--workers", "2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(_sources())}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    logs = "".join(path.read_text() for path in trap.directory.glob(".expunge/logs/*"))
    assert done.returncode == 0, done.stderr + logs
    safe(trap)


def _sources() -> list[str]:
    import expunge

    return [str(Path(expunge.__file__).parents[1])]
