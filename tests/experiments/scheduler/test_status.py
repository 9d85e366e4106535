"""The status of a plan whose store does not exist is that of an empty store, without hashing any source."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from expunge.experiments import get_plan_status, load_plan
from expunge.experiments.scheduler import status as module

PLAN = """
name: small
base:
  data: {source: SOURCE}
  model: {name: MODEL}
  training: {recipe: one-cycle}
  forget: {by: class, index: 3}
grid: {method: [{name: Retrain}, {name: FT}]}
"""


@pytest.mark.parametrize("source", ["digits", "fashion-mnist"])
def test_no_store_and_an_empty_store(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_DATA", str(tmp_path / "no-data"))
    (tmp_path / "plan.yaml").write_text(PLAN.replace("SOURCE", source).replace("MODEL", "mlp"))
    (tmp_path / "empty").mkdir()
    plan = load_plan(tmp_path / "plan.yaml")
    empty = get_plan_status(plan, store=tmp_path / "empty")
    monkeypatch.setattr(module, "hash_source_files", None)  # must not be called
    absent = get_plan_status(plan, store=tmp_path / "absent")
    assert dataclasses.asdict(absent) == dataclasses.asdict(empty)
    assert absent.stages["data"]["ready"] == (source == "digits")
    assert len(absent.failures) == (source != "digits")  # the data cannot be found
    assert absent.stages["forget"]["waiting"] == 2
    assert not (tmp_path / "absent").exists()
