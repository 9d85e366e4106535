"""The commands `bench tune` and `bench figure --ranks`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from expunge.cli.app import run

PLAN = """
name: small
base:
  data: {source: digits}
  split: {limit: 150}
  model: {name: mlp, options: {widths: [8]}}
  training: {recipe: one-cycle, epochs: 2}
  forget: {by: random, count: 10}
  method: {name: Retrain}
  runtime: {device: cpu}
grid: {seed: [0, 1]}
variants:
  method: {Retrain: {method: {name: Retrain}}, GA: {method: {name: GA}}, SSD: {method: {name: SSD}}}
  options: {default: {method.tuned: null}, tuned: {method.tuned: small.tuned.json}}
exclude: [{method: Retrain, options: tuned}]
"""


def test_tune_then_run_then_rank(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("small.yaml").write_text(PLAN)
    assert run(["bench", "run", "small.yaml"]) == 2
    assert "expunge bench tune" in capsys.readouterr().err
    assert run(["bench", "tune", "small.yaml", "--trials", "2", "--seed", "3", "--json"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert body["seed"] == 3
    assert body == {k: v for k, v in json.loads(Path("small.tuned.json").read_text()).items() if k in body}
    assert run(["bench", "tune", "small.yaml", "--trials", "2", "--seed", "3"]) == 0
    assert "0 stages computed; the search: small.tuned.json" in capsys.readouterr().out
    assert run(["bench", "run", "small.yaml"]) == 0
    assert "Tuned (`expunge bench tune`, on a proxy request): GA, tuned; SSD, tuned." in capsys.readouterr().out
    arguments = ["bench", "figure", "small.yaml", "--score", "Disparity average", "--output", "ranks.svg"]
    assert run([*arguments, "--ranks", "--also", "small.results.json", "--only", "options=tuned"]) == 0
    svg = Path("ranks.svg").read_text()
    assert "small.results.json; score=Disparity average; options=tuned; ranks; also=small.results.json" in svg
    assert "2 settings, 2 seeds" in svg
    assert "GA, default" not in svg
    capsys.readouterr()
    assert run([*arguments, "--also", "small.results.json"]) == 2
    assert "--also is an option of --ranks" in capsys.readouterr().err


def test_errors_are_those_of_the_user(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("small.yaml").write_text(PLAN)
    for arguments, message in ((["--trials", "0"], "0 trials"), (["--sampler", "optuna:gp"], "unknown sampler")):
        assert run(["bench", "tune", "small.yaml", *arguments]) == 2
        assert message in capsys.readouterr().err
    Path("run.yaml").write_text(
        "{data: {source: digits}, model: {name: mlp}, training: {recipe: one-cycle}, forget: {by: class, index: 3},"
        " method: {name: GA, tuned: small.tuned.json}}"
    )
    assert run(["check", "run.yaml"]) == 2
    assert "tuned options are read in plans only" in capsys.readouterr().err
