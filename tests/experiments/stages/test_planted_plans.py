"""Plantings and strata in plans and runs: stages know them, other cells do not, `check` and the run say the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import expunge
from expunge.core.errors import ConfigError, ExpungeError, Interrupted
from expunge.core.files import read_json
from expunge.experiments import load_config, load_plan, run_plan
from expunge.experiments.config.registry_checks import check_plan
from expunge.experiments.objects.records import add_planting, read_records
from expunge.experiments.scheduler.graph import build_graph
from expunge.experiments.scheduler.progress import NullReporter
from expunge.experiments.scheduler.status import PlanState
from expunge.experiments.store.store import Store
from expunge.models import load_trained
from expunge.workflow import check_run, forget, make_original_model, rescore

BASE = """\
data: {source: digits}
split: {limit: 240}
model: {name: mlp, options: {widths: [16]}}
training: {recipe: one-cycle, epochs: 2}
runtime: {device: cpu}
"""
KINDS = {
    "random": "{by: random, count: 20}",
    "backdoor": "{by: backdoor, count: 20, size: 2, row: 0, column: 0, target: 3}",
    "canaries": "{by: canaries, count: 20}",
    "look-alikes": "{by: look-alikes, count: 20, copies: 2}",
    "stratum": "{by: memorisation-stratum, stratum: high, count: 20}",
}
PLAN = f"""\
name: planted
base: {{{", ".join(BASE.strip().splitlines())}, evaluation: {{scores: [ASR before, SA before, Known near]}}}}
grid:
  forget:
{chr(10).join(f"    {name}: {text}" for name, text in KINDS.items())}
  method: [{{name: Retrain}}, {{name: FT, options: {{epochs: 1}}}}]
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    root = tmp_path_factory.mktemp("planted")
    (root / "planted.yaml").write_text(PLAN)
    return root, run_plan(load_plan(root / "planted.yaml"), store=root / "store")


def cells_of(run: Any) -> dict[tuple[str, str], dict[str, Any]]:
    return {(cell["labels"]["forget"], cell["method"]): cell for cell in run.results["cells"]}


def test_every_kind_is_scored_in_one_plan(ran: tuple[Path, Any]) -> None:
    _, run = ran
    assert run.failures == ()
    found = cells_of(run)
    own = {"backdoor": {"ASR", "SA", "ASR before", "SA before"}, "canaries": {"Canaries known", "Canaries healed"},
           "look-alikes": {"Look-alikes known"}}  # fmt: skip
    for (kind, _), cell in found.items():
        assert cell["state"] == "finished"
        for other, names in own.items():
            assert names <= set(cell["scores"]) if other == kind else not names & set(cell["scores"])
        assert "Known near" in cell["scores"]
    assert found["backdoor", "FT"]["scores"]["SA"] == found["backdoor", "FT"]["scores"]["TA"]
    assert found["backdoor", "FT"]["scores"]["ASR before"] == found["backdoor", "Retrain"]["scores"]["ASR before"]


def test_the_same_plan_again_computes_nothing(ran: tuple[Path, Any]) -> None:
    root, run = ran
    assert run.computed == run.total
    assert run_plan(load_plan(root / "planted.yaml"), store=root / "store").computed == 0


def test_cells_without_a_planting_are_those_of_a_plan_without_plantings(ran: tuple[Path, Any]) -> None:
    root, _ = ran
    lines = [line for line in PLAN.splitlines(keepends=True) if not any(f"    {kind}:" in line for kind in KINDS)]
    at = lines.index("  forget:\n") + 1
    (root / "alone.yaml").write_text("".join([*lines[:at], f"    random: {KINDS['random']}\n", *lines[at:]]))
    alone = load_plan(root / "alone.yaml")
    both = build_graph(load_plan(root / "planted.yaml").cells)
    ids = set(build_graph(alone.cells).nodes)
    assert ids <= set(both.nodes)  # equal keys, so equal bits
    assert run_plan(alone, store=root / "store").computed == 0
    bodies = [both.nodes[node_id].config["data"] for node_id in ids]
    assert all(set(body) == {"source", "options"} for body in bodies)


def test_trainings_differ_and_record_what_was_planted(ran: tuple[Path, Any]) -> None:
    root, _ = ran
    plan = load_plan(root / "planted.yaml")
    state = PlanState(plan, Store(root / "store"))
    trainings = {}
    for cell, chain in zip(plan.cells, state.graph.cells, strict=True):
        entries = {stage: state.entry(state.graph.nodes[node_id]) for stage, node_id in chain.items()}
        kind = cell.labels["forget"]
        trained = load_trained(entries["train"].path)
        trainings.setdefault(kind, set()).add(chain["train"])
        outcome = read_json(entries["forget"].path / "outcome.json", "expunge.outcome", 2)
        data = read_json(entries["data"].path / "data.json", "expunge.data", 1)
        if kind in ("random", "stratum"):
            assert "planted" not in data
            assert "planted" not in trained.split.origin
            continue
        by = {"by": kind}.items()
        assert by <= data["planted"].items()
        assert by <= trained.split.origin["planted"].items()
        assert by <= outcome["request"]["selection"].items()
        suffix = {"backdoor": "~backdoor", "canaries": "~canary", "look-alikes": ""}[kind]
        assert all(name.endswith(suffix) for name in outcome["request"]["record_ids"])
        unlearned = load_trained(entries["forget"].path)
        assert set(outcome["request"]["record_ids"]) == set(unlearned.split.forget.tolist())
    assert all(len(found) == 1 for found in trainings.values())  # one original for all methods
    assert trainings["random"] == trainings["stratum"]
    assert len(set.union(*trainings.values())) == 4


def test_the_original_learns_the_planted_records(ran: tuple[Path, Any]) -> None:
    """The training stage, computed step by step."""
    root, _ = ran
    plan = load_plan(root / "planted.yaml")
    state = PlanState(plan, Store(root / "store"))
    records = expunge.load_records("digits")
    split = expunge.make_split(records, limit=240)
    planted = expunge.data.plant_canaries(records, split, count=20)
    after = expunge.make_split(planted, limit=240)
    network = expunge.architecture("mlp", planted, after, widths=(16,))
    recipe = expunge.get_recipe("one-cycle", epochs=2)
    expected = expunge.train(planted, after, network, recipe=recipe, seed=0, runtime=expunge.Runtime("cpu"))
    node = next(
        chain for cell, chain in zip(plan.cells, state.graph.cells, strict=True) if cell.labels["forget"] == "canaries"
    )
    assert load_trained(state.entry(state.graph.nodes[node["train"]]).path).hash == expected.hash


class Stops(NullReporter):
    """Simulates Ctrl-C in the first training."""

    def step(self, label: str, done: int, total: int, info: dict[str, Any]) -> None:
        raise KeyboardInterrupt


def test_an_interrupted_plan_resumes(ran: tuple[Path, Any], tmp_path: Path) -> None:
    (tmp_path / "planted.yaml").write_text(PLAN)
    plan = load_plan(tmp_path / "planted.yaml")
    with pytest.raises(Interrupted):
        run_plan(plan, store=tmp_path / "store", reporter=Stops())
    again = run_plan(plan, store=tmp_path / "store")
    assert again.failures == ()
    for key, cell in cells_of(ran[1]).items():
        assert cells_of(again)[key]["hashes"] == cell["hashes"]


def write(path: Path, forget_section: str, more: str = "") -> Path:
    path.write_text(f"{BASE}forget: {forget_section}\nmethod: {{name: FT, options: {{epochs: 1}}}}\n{more}")
    return path


def test_a_run_reports_it_and_train_makes_the_same_original(tmp_path: Path) -> None:
    config = load_config(write(tmp_path / "run.yaml", KINDS["backdoor"]))
    original = make_original_model(config, tmp_path / "original", pruned=False, store=tmp_path / "store")
    result = forget(config, tmp_path / "out", store=tmp_path / "store")
    provenance = load_trained(original.directory).provenance
    assert load_trained(result.paths.directory).provenance.data == provenance.data
    assert len(list((tmp_path / "store").rglob("train*/"))) == 1  # one training for both commands
    page = (tmp_path / "out" / "report.html").read_text()
    assert "poisoned with a patch of 2 pixels a side, labelled 3" in page
    assert "ASR" in page
    scores = {one.name: one.value for one in rescore(tmp_path / "out", config)}
    first = {one["name"]: one["value"] for one in result.scores["scores"]}
    assert scores["ASR"] == first["ASR"]
    assert set(scores) <= set(first)


@pytest.mark.parametrize(
    "section",
    [
        "{by: backdoor, count: 20, size: 9}",
        "{by: backdoor, count: 20, size: 2, target: eleven}",
        "{by: backdoor, count: 2000}",
        "{by: canaries, fraction: 0.9, hold: [digit-9999]}",
        "{by: look-alikes, count: 20, change: shift, copies: 20}",
        "{by: memorisation-stratum, stratum: low, count: 100}",
    ],
)
def test_check_and_run_refuse_the_same(tmp_path: Path, section: str) -> None:
    config = load_config(write(tmp_path / "run.yaml", section))
    errors = [finding for finding in check_run(config).findings if finding.level == "error"]
    with pytest.raises(ExpungeError) as caught:
        forget(config, tmp_path / "out", store=tmp_path / "store")
    assert [finding.subject for finding in errors] == ["forget"]
    assert caught.value.what in errors[0].message
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "store").rglob("*.safetensors"))  # nothing was trained


def test_check_accepts_what_runs_and_warns_of_copies(tmp_path: Path) -> None:
    for section in KINDS.values():
        assert check_run(load_config(write(tmp_path / "run.yaml", section))).usable
    found = check_run(load_config(write(tmp_path / "run.yaml", KINDS["look-alikes"]))).findings
    assert any("20 of 20 have a near copy" in finding.message for finding in found if finding.level == "warning")


def test_options_of_plans_are_checked_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "planted.yaml").write_text(PLAN.replace("copies: 2", "copies: -2"))
    with pytest.raises(ConfigError, match="copies"):
        check_plan(load_plan(tmp_path / "planted.yaml"))


def test_a_model_that_was_trained_elsewhere_cannot_have_a_planting(tmp_path: Path) -> None:
    path = write(tmp_path / "run.yaml", KINDS["canaries"])
    with pytest.raises(ConfigError, match="changes the training data"):
        load_config(path, ["model.weights=model.safetensors"])


def test_only_the_section_forget_plants_in_leakage(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        BASE + "sparsity: {sparsity: 0.5, layers: [linear]}\nforget: {by: random, count: 20}\n"
        "leakage: {models: 4, game: two-requests, other: {by: canaries, count: 20}}\n"
    )
    with pytest.raises(ConfigError, match="cannot be by canaries"):
        load_config(tmp_path / "run.yaml")
    with pytest.raises(ConfigError, match="needs `forget` by memorisation-stratum"):
        load_config(tmp_path / "run.yaml", ["leakage.other={by: memorisation-stratum, stratum: low}"])


def test_masks_are_attacked_beside_look_alikes(tmp_path: Path) -> None:
    (tmp_path / "leakage.yaml").write_text(
        f"name: leakage\nbase: {{{', '.join(BASE.strip().splitlines())}, sparsity: {{sparsity: 0.5, layers: [linear]}},"
        " leakage: {models: 4, permutations: 5}}\n"
        "grid: {forget: {none: {by: look-alikes, count: 20, copies: 0},\n"
        "                four: {by: look-alikes, count: 20, copies: 4}}}\n"
    )
    run = run_plan(load_plan(tmp_path / "leakage.yaml"), store=tmp_path / "store")
    assert run.failures == ()
    assert len(run.results["cells"]) == 2


def test_the_key_has_the_planting_and_the_split() -> None:
    section = {"source": "digits", "options": {}}
    split = {"seed": 0, "limit": 240}
    assert add_planting(section, {"by": "random", "count": 3}, split) == section
    assert add_planting(section, None, split) == section
    planted = add_planting(section, {"by": "canaries", "count": 3}, split)
    assert planted["planted"] == {"forget": {"by": "canaries", "count": 3}, "split": split}
    records = read_records(planted, None)
    assert len(records) == 1800
    assert read_records(planted, None) is records
    assert len(read_records(section, None)) == 1797
    other = read_records(add_planting(section, {"by": "canaries", "count": 3}, {"seed": 1, "limit": 240}), None)
    assert not np.array_equal(other.planted.base_ids, records.planted.base_ids)
