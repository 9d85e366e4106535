"""The commands: what they write, what they print, on which stream."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import PLAN, Line

from expunge.core.mask import Mask
from expunge.models import load_trained


def test_the_package_runs_as_a_module() -> None:
    for name in ("expunge", "expunge.cli"):
        done = subprocess.run([sys.executable, "-m", name, "--version"], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.strip()


def test_forget_replaces_another_result_only_if_it_may(line: Line) -> None:
    command = ("forget", "config.yaml", "method={name: FT, options: {epochs: 1}}")
    assert line(*command).code == 0
    outcome = line.directory / "runs/config/unlearned/outcome.json"
    first = outcome.read_bytes()
    assert line(*command).code == 0  # the same again
    refused = line("forget", "config.yaml", "method={name: GA, options: {epochs: 1}}")
    assert refused.code != 0
    assert "--overwrite" in refused.err
    assert outcome.read_bytes() == first
    done = line("forget", "config.yaml", "method={name: GA, options: {epochs: 1}}", "--overwrite")
    assert done.code == 0, done.err
    assert "FT" in done.out + done.err
    assert json.loads(outcome.read_text())["method"]["name"] == "GA"


def test_forget_writes_model_scores_and_report(line: Line, elsewhere: Path) -> None:
    """A trained sparse model and a list of ids give an unlearned model, its scores and a report."""
    model = elsewhere / "pruned"
    split = json.loads((model / "split.json").read_text())
    ids, keep = split["retain"][:40:2], split["retain"][1:6:2]
    (line.directory / "ids.txt").write_text("\n".join(ids) + "\n")
    result = line(
        "forget", "config.yaml", f"model.weights={model}/model.safetensors", f"model.mask={model}/mask.safetensors",
        f"split.file={model}/split.json", "forget={by: ids, file: ids.txt}", f"forget.hold={json.dumps(keep)}",
        "seed=3", "--json",
    )  # fmt: skip
    assert result.code == 0, result.err
    at = line.directory / "runs/config/unlearned"
    assert sorted(p.name for p in at.iterdir()) == result.json["files"]
    assert {"model.safetensors", "mask.safetensors", "scores.json", "outcome.json", "report.html"} <= set(
        result.json["files"]
    )
    unlearned, before = load_trained(at), load_trained(model)
    assert sorted(unlearned.split.forget.tolist()) == sorted(ids)
    assert unlearned.mask is not None
    assert unlearned.mask.hash() == Mask.load(model / "mask.safetensors").hash()
    assert unlearned.mask.count_violations(unlearned.model) == {}
    assert unlearned.hash != before.hash
    scores = {score["name"]: score for score in result.json["scores"]["scores"]}
    assert {"UA", "RA", "TA", "MIA-Efficacy", "MIA-Privacy", "AUC", "RTE", "Passes", "Disparity average"} <= set(scores)
    assert scores["UA"]["reference"] is not None
    outcome = json.loads((at / "outcome.json").read_text())
    assert outcome == result.json["outcome"]
    check_outcome(outcome, ids, keep, model, before.hash)
    page = (at / "report.html").read_text()
    assert "What this does not show" in page
    assert "FT" in page
    assert "<script" not in page


def check_outcome(outcome: dict[str, Any], ids: list[str], keep: list[str], model: Path, weights: str) -> None:
    configuration = outcome["configuration"]
    assert configuration["model"]["weights"] == f"{model}/model.safetensors"
    assert configuration["method"] == {"name": "FT", "options": {"epochs": 1}}
    assert configuration["seed"] == 3
    assert {"data", "split", "training", "sparsity", "forget", "evaluation", "runtime"} <= set(configuration)
    assert outcome["request"]["record_ids"] == sorted(ids)
    assert outcome["request"]["hold"] == sorted(keep)
    assert {"train.weights", "train.mask", "train.file", "forget.file"} == set(outcome["files"])
    assert {"data", "split", "weights", "mask"} <= {name for name, value in outcome["hashes"].items() if value}
    assert outcome["provenance"]["weights_from"] == weights
    assert outcome["seeds"]["method"]
    assert {"expunge", "python", "torch", "numpy"} <= set(outcome["versions"])
    state = outcome["state"]
    assert "weights" in state["rewrote"]
    assert "mask" in state["carried"]
    assert set(state["meaning"]) == {*state["rewrote"], *state["carried"]}


def test_train_prune_forget_share_their_stages(line: Line) -> None:
    assert line("train", "config.yaml", "--json").json["files"][0] == "model.safetensors"
    sparse = ["sparsity.sparsity=0.5", "sparsity.layers=[linear]"]
    pruned = line("prune", "config.yaml", *sparse, "--json")
    assert "mask.safetensors" in pruned.json["files"]
    assert "train digits" not in pruned.err  # it was in the store
    result = line("forget", "config.yaml", *sparse)
    assert result.code == 0, result.err
    assert "prune digits" not in result.err
    assert "Disparity average" in result.out
    assert "unchanged since training on D_f: mask" in result.out
    entries = sorted(p.parent.name for p in (line.directory / ".expunge/entries").glob("*/*"))
    assert entries == ["data", "forget", "forget", "prune", "score", "score", "score_original", "train"]
    again = line("forget", "config.yaml", *sparse)
    assert (again.code, again.out, again.err) == (0, result.out, "")
    scored = line("evaluate", "config.yaml", "--model", "runs/config/unlearned", "-o", "again.json", "--json")
    first = json.loads((line.directory / "runs/config/unlearned/scores.json").read_text())
    values = {score["name"]: score["value"] for score in first["scores"]}
    assert {score["name"]: score["value"] for score in scored.json["scores"]} == {
        name: value for name, value in values.items() if name != "Disparity average"
    }
    assert json.loads((line.directory / "again.json").read_text())["scores"] == scored.json["scores"]


def test_any_key_can_be_overridden(line: Line) -> None:
    result = line("check", "config.yaml", "training.epochs=7", "model.options.widths=[5, 4]", "--json")
    texts = {finding["subject"]: finding["message"] for finding in result.json["findings"]}
    assert "7 epochs" in texts["training"]
    assert texts["weights"].startswith(f"{64 * 5 + 5 + 5 * 4 + 4 + 4 * 10 + 10:,} parameters")


def test_methods_come_from_the_registry(line: Line) -> None:
    from expunge.methods import method_table

    result = line("methods", "--json")
    assert [row["name"] for row in result.json] == [row["name"] for row in method_table()]
    text = line("methods").out
    for row in result.json:
        assert row["guarantee"] in text
        assert row["citation"] in text
        assert all(f"{option}=" in text for option in row["options"])


def test_one_method_and_one_score(line: Line) -> None:
    assert [row["name"] for row in line("methods", "ft", "ga", "--json").json] == ["FT", "GA"]
    assert [row["name"] for row in line("scores", "UA", "--json").json] == ["UA"]
    assert line("methods", "FT").out.startswith("FT  [empirical")
    assert "GA" not in line("methods", "FT").out.split("citation")[0]
    assert line("scores", "ua").out.startswith("UA %")
    for kind, name, near in (("methods", "FTT", "FT"), ("scores", "UAA", "UA")):
        result = line(kind, name)
        assert (result.code, result.out) == (2, "")
        assert f"unknown {kind[:-1]} {name!r}" in result.err
        assert f"did you mean {near!r}?" in result.err


def test_bench(line: Line) -> None:
    (line.directory / "tiny.yaml").write_text(PLAN)
    before = line("bench", "status", "tiny.yaml", "--json")
    assert before.json["finished"] is False
    ran = line("bench", "run", "tiny.yaml", "--json")
    assert ran.code == 0
    assert [cell["state"] for cell in ran.json["cells"]] == ["finished", "finished"]
    table = line("bench", "table", "tiny.yaml")
    assert "GA" in table.out
    assert line("bench", "table", "tiny.results.json", "--json").json.items() >= ran.json.items()
    assert "| GA" in line("bench", "table", "tiny.yaml", "--style", "markdown").out
    assert line("bench", "table", "tiny.yaml", "--style", "html").code == 2
    failed = line("bench", "run", "tiny.yaml", "forget={by: random, count: 0}")
    assert failed.code == 1
    assert "the forget set is empty" in failed.out


def test_mistakes_of_the_command_line_go_to_standard_error(line: Line) -> None:
    for arguments, text in (
        (["forgets", "config.yaml"], "Did you mean forget?"),
        (["forget", "config.yaml", "--outptu", "x"], "Did you mean --output?"),
        (["forget"], "requires an argument"),
        (["bench", "runn", "x"], "Did you mean run?"),
    ):
        result = line(*arguments)
        assert (result.code, result.out) == (2, "")
        words = result.err.replace("│", "").replace('"', "")  # what is quoted differs between versions of cyclopts
        assert text in " ".join(words.split())


def test_a_full_standard_output_is_reported(line: Line) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    with open(full, "w") as out:
        done = subprocess.run(
            [sys.executable, "-m", "expunge.cli", "--help"],
            env=environment,
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 2
    assert "the disk is full" in done.stderr
    assert "Traceback" not in done.stderr
