"""The real stages on a small real plan."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import expunge
from expunge.core.errors import ExpungeError, Interrupted
from expunge.core.files import read_json
from expunge.core.seeds import derive
from expunge.data import load_records, make_split, select_forget
from expunge.evaluation import evaluate
from expunge.experiments import PlanRun, get_plan_status, load_plan, render_table, run_plan
from expunge.experiments.scheduler.progress import NullReporter
from expunge.experiments.scheduler.status import PlanState
from expunge.experiments.stages.registry import StageInputs, load_stage_table
from expunge.experiments.store.store import Store
from expunge.methods import Context, get_method
from expunge.models import architecture, load_trained
from expunge.sparsity import Pruning, prune
from expunge.training import get_recipe, loop, train

PLAN = """\
name: digits
base:
  data: {source: digits}
  model: {name: mlp, options: {widths: [32]}}
  training: {recipe: one-cycle, epochs: 4}
  forget: {by: random, fraction: 0.1}
  runtime: {device: cpu}
grid:
  sparsity:
    dense: null
    "80 %": {sparsity: 0.8, layers: [linear]}
  method:
    Retrain: {name: Retrain}
    FT: {name: FT, options: {epochs: 1}}
    GA: {name: GA, options: {epochs: 1, learning_rate: 1e-3}}
  seed: [3, 4]
claims:
  - {name: one, statement: nothing much, score: Disparity average, where: {method: FT},
     compare: [{sparsity: 80 %}, {sparsity: dense}], expect: lower}
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PlanRun]:
    root = tmp_path_factory.mktemp("plan")
    (root / "digits.yaml").write_text(PLAN)
    return root, run_plan(load_plan(root / "digits.yaml"), store=root / "store")


def test_every_cell_is_scored(ran: tuple[Path, PlanRun]) -> None:
    _, run = ran
    assert run.failures == ()
    assert len(run.results["cells"]) == 12
    for cell in run.results["cells"]:
        assert cell["state"] == "finished"
        assert {"UA", "RA", "TA", "MIA-Efficacy", "RTE", "Passes", "AUC"} <= set(cell["scores"])
        assert ("Disparity average" in cell["scores"]) == (cell["method"] != "Retrain")
    passes = {cell["method"]: cell["scores"]["Passes"] for cell in run.results["cells"]}
    assert passes["Retrain"] >= 4
    assert 1 <= passes["FT"] < 2
    assert all(cell["over_limit"] for cell in run.results["cells"] if cell["method"] == "FT")  # 1 of 4 epochs
    assert "used more than 0.1 of the passes" in render_table(run.results)


def test_the_disparity_is_that_to_the_reference_of_the_same_cell(ran: tuple[Path, PlanRun]) -> None:
    _, run = ran
    cells = run.results["cells"]
    for cell in cells:
        reference = cells[cell["reference"]]
        assert (reference["method"], reference["labels"]["seed"]) == ("Retrain", cell["labels"]["seed"])
        assert reference["labels"]["sparsity"] == cell["labels"]["sparsity"]
        if cell is not reference:
            gaps = [abs(cell["scores"][n] - reference["scores"][n]) for n in ("UA", "MIA-Efficacy", "RA", "TA")]
            assert cell["scores"]["Disparity average"] == pytest.approx(np.mean(gaps))


def test_a_cell_equals_the_same_steps_in_python(ran: tuple[Path, PlanRun]) -> None:
    """The sparse FT cell of seed 4, computed step by step."""
    _, run = ran
    records = load_records("digits")
    split = make_split(records)
    blueprint = architecture("mlp", records, split, widths=(32,))
    dense = train(records, split, blueprint, recipe=get_recipe("one-cycle", epochs=4), seed=4)
    sparse = prune(dense, Pruning(sparsity=0.8, layers=("linear",)), Context(records, seed=4))
    request = select_forget(records, split, {"by": "random", "fraction": 0.1})
    outcome = get_method("FT", epochs=1).forget(sparse, request, Context(records, seed=derive(4, "forget")))
    (cell,) = [
        cell for cell in run.results["cells"] if cell["labels"] == {"sparsity": "80 %", "method": "FT", "seed": "4"}
    ]
    assert cell["hashes"]["weights"] == outcome.trained.hash
    scores = evaluate(outcome.trained, request, records, seed=4)
    for name in ("UA", "RA", "TA", "MIA-Efficacy", "AUC"):
        assert cell["scores"][name] == pytest.approx(scores[name].value, rel=1e-8)


def test_entries_hold_models_and_outcomes(ran: tuple[Path, PlanRun]) -> None:
    root, run = ran
    plan = load_plan(root / "digits.yaml")
    state = PlanState(plan, Store(root / "store"))
    for cell, chain in zip(run.results["cells"], state.graph.cells, strict=True):
        entry = state.entry(state.graph.nodes[chain["forget"]])
        assert entry is not None
        trained = load_trained(entry.path)
        assert trained.hash == cell["hashes"]["weights"]
        assert (trained.mask is None) == (cell["labels"]["sparsity"] == "dense")
        outcome = read_json(entry.path / "outcome.json", "expunge.outcome", 2)
        assert sorted(trained.split.forget.tolist()) == outcome["request"]["record_ids"]


def test_a_finished_plan_does_not_import_torch(ran: tuple[Path, PlanRun]) -> None:
    root, run = ran
    code = (
        "import sys; from expunge.experiments import *\n"
        "p = load_plan(sys.argv[1]); s = get_plan_status(p, store=sys.argv[2])\n"
        "assert s.finished and s.results, s; run = run_plan(p, store=sys.argv[2])\n"
        "assert run.computed == 0; print(render_table(run.results)); sys.exit('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(root / "digits.yaml"), str(root / "store")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert done.stdout == render_table(run.results) + "\n"


def test_every_function_that_a_stage_calls_is_in_its_source(ran: tuple[Path, PlanRun], tmp_path: Path) -> None:
    """Brute force: the files of all functions that run, are in the set of files found without running anything."""
    root, _ = ran
    state = PlanState(load_plan(root / "digits.yaml"), Store(root / "store"))
    package = Path(expunge.__file__).parent
    nodes = [node for node in state.graph.nodes.values() if node.config.get("seed") != 4]
    for number, node in enumerate(nodes):
        entries = {name: state.entry(state.graph.nodes[i]) for name, i in node.inputs.items()}
        inputs = StageInputs(
            config=node.config,
            directories={name: entry.path for name, entry in entries.items() if entry},
            output_hashes={name: entry.output for name, entry in entries.items() if entry},
            data_dir=None,
            work_dir=tmp_path / f"work{number}",
        )
        inputs.work_dir.mkdir()
        out = tmp_path / f"out{number}"
        out.mkdir()
        files = set()

        def watch(frame: FrameType, event: str, _: object, files: set[str] = files) -> None:
            if event == "call" and frame.f_code.co_filename.startswith(str(package)):
                files.add(frame.f_code.co_filename)

        sys.setprofile(watch)
        try:
            output = load_stage_table()[node.stage].run(inputs, out)
        finally:
            sys.setprofile(None)
        entry = state.entry(node)
        ingredients = state.ingredients(node)
        assert entry is not None
        assert ingredients is not None
        assert output == entry.output  # the same bits again
        called = {".".join(["expunge", *Path(f).relative_to(package).with_suffix("").parts]) for f in files}
        if node.stage != "data":  # other stages depend on the records, not on the code that finds and reads them
            called -= {name for name in called if name.startswith(("expunge.data.registry", "expunge.data.sources"))}
            called -= {"expunge.data.data_dir"}
        assert called - {"expunge.experiments.stages.registry"} <= set(ingredients.source), node.label


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: GA, options: {epochs: 1", "name: GA, options: {epoch: 1", "did you mean 'epochs'"),
        ("name: GA,", "name: GAA,", "did you mean 'GA'"),
        ("widths: [32]", "widhts: [32]", "did you mean 'widths'"),
        ("recipe: one-cycle", "recipe: one-cicle", "did you mean 'one-cycle'"),
        ("source: digits", "source: didgits", "did you mean 'digits'"),
        ("fraction: 0.1", "fracton: 0.1", "did you mean 'fraction'"),
        ("layers: [linear]", "layers: [lineal]", "did you mean 'linear'"),
        ("layers: [linear]", "layers: [linear], schedule: lottery", "unknown schedule 'lottery'"),
    ],
)
def test_names_of_registries_are_checked_before_anything_runs(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in PLAN
    path = tmp_path / "bad.yaml"
    path.write_text(PLAN.replace(old, new))
    with pytest.raises(ExpungeError) as caught:
        run_plan(load_plan(path), store=tmp_path / "store")
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path} (sparsity ")
    assert not (tmp_path / "store").exists()  # nothing was run


def test_an_empty_forget_set_fails_its_cells(ran: tuple[Path, PlanRun], tmp_path: Path) -> None:
    root, _ = ran
    path = tmp_path / "bad.yaml"
    path.write_text(PLAN.replace("fraction: 0.1", "count: 0"))
    run = run_plan(load_plan(path), store=root / "store")
    assert run.exit_code == 1
    assert all("the forget set is empty" in text for _, text in run.failures)
    assert not get_plan_status(load_plan(path), store=root / "store").finished


class StopsAtTheEnd(NullReporter):
    """Simulates Ctrl-C in the last epoch of the first run with this label."""

    def __init__(self, label: str) -> None:
        self.label = label

    def step(self, label: str, done: int, total: int, info: dict[str, Any]) -> None:
        if label.startswith(self.label) and done >= total:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("label", "epochs"), [("train", 4), ("prune", 3), ("Retrain", 4)])
def test_an_interrupted_stage_resumes_mid_way_to_the_same_bits(
    ran: tuple[Path, PlanRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, label: str, epochs: int
) -> None:
    _, run = ran
    (tmp_path / "small.yaml").write_text(
        PLAN[: PLAN.index("    FT:")] + ("  seed: [3]\n")  # Retrain alone, one seed
    )
    plan = load_plan(tmp_path / "small.yaml")
    trained = []
    epoch_of = loop.EpochLoop.run_epoch

    def counted(self: Any, epoch: int, seen: int) -> tuple[float, float]:
        if self.label.startswith(label):
            trained.append(epoch)
        return epoch_of(self, epoch, seen)

    monkeypatch.setattr(loop.EpochLoop, "run_epoch", counted)
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    paths = {"store": tmp_path / "store", "results": tmp_path / "r.json"}
    whole = {str(cell["labels"]): cell["hashes"] for cell in run.results["cells"]}
    with pytest.raises(Interrupted, match="run the same command again to resume"):
        run_plan(plan, reporter=StopsAtTheEnd(label), **paths)
    assert len(list((tmp_path / "store/work").glob("*/*.safetensors"))) == 1
    first = len(trained)
    again = run_plan(plan, **paths)
    assert all(cell["hashes"] == whole[str(cell["labels"])] for cell in again.results["cells"])
    assert first == epochs
    assert trained[first] == trained[first - 1] == 3  # only the epoch that was interrupted is trained again


def test_a_changed_reader_that_reads_the_same_records_trains_nothing(
    ran: tuple[Path, PlanRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, run = ran
    from expunge.experiments.scheduler import status as module

    real = module.hash_source_files

    def edited(modules: Any) -> dict[str, str]:
        found = real(modules)
        return {name: value + "x" if name == "expunge.data.registry" else value for name, value in found.items()}

    monkeypatch.setattr(module, "hash_source_files", edited)
    again = run_plan(load_plan(root / "digits.yaml"), store=root / "store", results=root / "again.json")
    entries = [path.parent.name for path in (root / "store/entries").glob("*/*")]
    assert entries.count("data") == 2
    assert [cell["hashes"] for cell in again.results["cells"]] == [cell["hashes"] for cell in run.results["cells"]]
    assert entries.count("train") == 2  # two seeds, none retrained
