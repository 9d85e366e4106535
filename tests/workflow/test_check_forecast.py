"""`check` forecasts the stages of a configuration and of a plan, from a probe where none like them has finished."""

from __future__ import annotations

from pathlib import Path

import pytest

from expunge.experiments import load_config, load_plan
from expunge.workflow import check_plan_cells, check_run, probe_plan
from expunge.workflow.costs import stages as module
from expunge.workflow.costs.probe import Probe

CONFIG = """
data: {source: digits}
split: {limit: 500, validation: 0.1, non_members: 0.1}
model: {name: mlp, options: {widths: [8]}}
training: {recipe: one-cycle, epochs: 4, select: best}
forget: {by: random, count: 20}
method: {name: FT, options: {epochs: 3}}
runtime: {device: cpu}
"""
PLAN = """
name: small
base:
  data: {source: digits}
  split: {limit: 500}
  model: {name: mlp, options: {widths: [8]}}
  training: {recipe: one-cycle, epochs: 4}
  forget: {by: random, count: 20}
  runtime: {device: cpu}
grid: {method: [{name: Retrain}, {name: FT, options: {epochs: 3}}], seed: [0, 1]}
"""
PROBE = Probe(forward=0.01, train=0.1, batch_size=64, batches=4, device="cpu", threads=1, seconds=2.0, resident=7)


def test_a_configuration_is_counted_in_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("expunge.workflow.costs.run.measure_run", lambda config, parts: PROBE)
    (tmp_path / "run.yaml").write_text(CONFIG)
    check = check_run(load_config(tmp_path / "run.yaml"), costs=True, store=tmp_path / "store")
    assert check.forecast is not None
    counts = {f.subject: f.message for f in check.findings}["split"]
    split = {word.split()[0]: int(word.split()[1]) for word in counts.split(", ")}
    train, validation, retain = split["retain"], split["validation"], split["retain"] - 20
    rows = {row.stages: row for row in check.forecast.stages}
    assert rows["train of mlp on digits"].seconds == pytest.approx(4 * (0.1 * train + 0.01 * validation))
    assert rows["forget of Retrain with mlp on digits"].seconds == pytest.approx(4 * (0.1 * retain + 0.01 * validation))
    assert rows["forget of FT with mlp on digits"].seconds == pytest.approx(3 * 0.1 * retain)
    assert rows["forget of FT with mlp on digits"].basis == "from a probe of 2 s"
    assert rows["forget of FT with mlp on digits"].memory == 7
    predicted = train + split["test"] + split["non_members"]
    assert rows["score of FT with mlp on digits"].seconds == pytest.approx(0.01 * predicted)
    assert "a lower bound" in rows["score of FT with mlp on digits"].basis
    assert rows["data on digits"].seconds is None
    assert check.to_json()["forecast"]["unknown"] == 1
    assert "1 stage of which nothing is known: data on digits" in check.text()
    assert not (tmp_path / "store").exists()


def test_a_plan_is_probed_once_for_each_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probes: list[str] = []
    monkeypatch.setattr(module, "measure_run", lambda config, parts: (probes.append(config.model.name), PROBE)[1])
    (tmp_path / "plan.yaml").write_text(PLAN)
    plan = load_plan(tmp_path / "plan.yaml")
    found = probe_plan(plan, store=tmp_path / "store")
    assert probes == ["mlp"]
    assert len(found) == 6  # data, train, and forget and score of two methods; seeds do not count
    bare = check_plan_cells(plan, store=tmp_path / "store")
    assert bare.forecast is not None
    assert (bare.forecast.seconds, bare.forecast.unknown) == (None, 11)
    one = check_plan_cells(plan, store=tmp_path / "store", probe=True).forecast
    two = check_plan_cells(plan, store=tmp_path / "store", probe=True, workers=2).forecast
    assert one is not None
    assert two is not None
    assert one.unknown == 0
    assert one.seconds is not None
    assert two.seconds is not None
    assert 0.45 * one.seconds < two.seconds < 0.7 * one.seconds
    assert check_plan_cells(plan).forecast is None


def test_a_wrong_cell_is_not_probed_and_the_others_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "measure_run", lambda config, parts: PROBE)
    text = PLAN.replace("grid: {", "grid: {model: [{name: mlp}, {name: lenet5}], ")  # digits are too small for LeNet-5
    (tmp_path / "plan.yaml").write_text(text)
    found = probe_plan(load_plan(tmp_path / "plan.yaml"), store=tmp_path / "store")
    assert found
    assert all(estimate.seconds is not None for estimate in found.values())
