"""Corrections through the command line, a plan, a later request, and the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import expunge
from expunge.cli.app import run
from expunge.core.errors import ConfigError
from expunge.core.files import read_json
from expunge.experiments.config.run_config import check_config
from expunge.workflow import check_plan_cells

CONFIG = """
data: {source: breast-cancer}
split: {limit: 200}
model: {name: mlp, options: {widths: [6]}}
training: {recipe: one-cycle, epochs: 3}
forget: {by: correct, file: labels.csv}
method: {name: FT, options: {epochs: 1}}
runtime: {device: cpu}
"""


@pytest.fixture
def ids(workplace: Path) -> list[str]:
    records = expunge.load_records("breast-cancer")
    split = expunge.make_split(records, limit=200)
    chosen = split.retain[:6].tolist()
    lines = [f"{name},{records.class_names[1 - records.labels[records.rows([name])[0]]]}" for name in chosen]
    Path("labels.csv").write_text("record_id,label\n" + "\n".join(lines) + "\n")
    Path("run.yaml").write_text(CONFIG)
    return chosen


def test_by_command_line_then_a_later_request(ids: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", "run.yaml"]) == 0
    assert "ok       forget: labels of 6 records" in capsys.readouterr().out
    assert run(["forget", "run.yaml", "output=first"]) == 0
    shown = capsys.readouterr().out
    assert "Corrected" in shown
    assert "which stay in training" in shown
    made = next(Path("first").rglob("model.safetensors")).parent
    outcome = read_json(made / "outcome.json", "expunge.outcome", 2)
    assert outcome["request"]["correction"]["record_ids"] == sorted(ids)
    assert outcome["request"]["selection"] == {"by": "correct", "file": "labels.csv", "changes": "labels"}
    assert expunge.Split.load(made / "split.json").corrections[0].record_ids.tolist() == sorted(ids)
    report = (made / "report.html").read_text()
    for text in ("6 corrected records", "new labels of record ids listed in labels.csv", "Corrected records stay"):
        assert text in report
    assert not any(name in report for name in ids), "ids are personal data"
    # rescored, the same numbers
    assert run(["evaluate", "run.yaml", "--model", str(made)]) == 0
    # the corrected model, imported with its split: a later request, on records that it corrected
    later = ["forget={by: ids, ids: [" + ", ".join(ids[:2]) + "]}", f"model.weights={made}/model.safetensors"]
    assert run(["forget", "run.yaml", *later, f"split.file={made}/split.json", "output=second"]) == 0, (
        capsys.readouterr().err
    )
    second = next(Path("second").rglob("outcome.json"))
    assert read_json(second, "expunge.outcome", 2)["request"]["records"] == 2
    assert expunge.Split.load(second.parent / "split.json").counts()["forget"] == 2
    capsys.readouterr()
    # its weights with the split of the original, which has the old labels, are refused
    assert run(["forget", "run.yaml", *later, "output=third"]) != 0
    assert "another split" in capsys.readouterr().err


def test_in_a_plan(ids: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("plan.yaml").write_text(
        f"""
name: corrections
base:
  data: {{source: breast-cancer}}
  split: {{limit: 200}}
  model: {{name: mlp, options: {{widths: [6]}}}}
  training: {{recipe: one-cycle, epochs: 2}}
  runtime: {{device: cpu}}
grid:
  forget:
    labels: {{by: correct, file: labels.csv}}
    columns: {{by: correct, ids: [{", ".join(ids)}], blank: [0, 1]}}
  method:
    Retrain: {{name: Retrain}}
    W1: {{name: Warnecke-1, options: {{tau: 0.001}}}}
"""
    )
    assert run(["bench", "run", "plan.yaml"]) == 0, capsys.readouterr().err
    body = json.loads(next(Path().rglob("*results.json")).read_text())
    assert {cell["state"] for cell in body["cells"]} == {"finished"}
    assert all("Corrected" in cell["scores"] for cell in body["cells"])


def test_what_configurations_refuse(ids: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", "run.yaml", "method={name: GA}"]) == 1
    assert "this method removes records; it cannot correct them" in capsys.readouterr().out
    assert run(["forget", "run.yaml", "method={name: GA}", "output=none"]) != 0
    assert "it cannot correct them" in capsys.readouterr().err
    assert not Path("none").exists()
    plan = Path("plan.yaml")
    plan.write_text("name: p\nbase: {" + ", ".join(CONFIG.strip().splitlines()[:-2]) + "}\n"
                    "grid: {method: {Retrain: {name: Retrain}, RL: {name: RL}}}\n")  # fmt: skip
    findings = {f.subject: f for f in check_plan_cells(expunge.load_plan(plan)).findings}
    assert findings["method Retrain"].level == "ok"
    assert findings["method RL"].level == "error"
    values = {
        "data": {"source": "digits"}, "model": {"name": "mlp"}, "training": {"recipe": "one-cycle"},
        "forget": {"by": "correct", "labels": {"digits-0001": 3}},
    }  # fmt: skip
    with pytest.raises(ConfigError, match="removes none"):
        check_config({**values, "evaluation": {"bound": True}})
    with pytest.raises(ConfigError, match="removes no record"):
        check_config({**values, "sparsity": {"sparsity": 0.5}, "leakage": {"models": 4}})
