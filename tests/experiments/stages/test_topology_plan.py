"""Plans about topologies: a reference by label, a rerun reference, memorised records, leakage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from expunge.core.errors import ConfigError
from expunge.core.mask import Mask
from expunge.evaluation import Scores
from expunge.evaluation.topology import iou, normalised_overlap
from expunge.experiments import load_plan, read_results, render_table, run_plan
from expunge.experiments.scheduler.status import PlanState
from expunge.experiments.store.store import Store
from expunge.methods import Context, get_method
from expunge.models import load_trained

PLAN = """\
name: topologies
base:
  data: {source: digits}
  model: {name: mlp, options: {widths: [16]}}
  training: {recipe: one-cycle, epochs: 4, batch_size: 64}
  sparsity: {sparsity: 0.8, layers: [linear]}
  forget: {by: memorised, count: 40, models: 6, seed: 1}
  runtime: {device: cpu}
grid:
  seed: [0, 1, 2]
variants:
  method:
    RR: {method: {name: Retrain, options: {mask: re-prune}}}
    RR rerun: {method: {name: Retrain, options: {mask: re-prune, seeds: order}}}
    unchanged: {method: {name: Un-prune, options: {rule: unchanged, method_options: {epochs: 1}}}}
    random: {method: {name: Un-prune, options: {rule: random, method_options: {epochs: 1}}}}
reference: RR
rerun: RR rerun
columns: [IoU, UA, Passes]
passes_limit: 0.5
"""

LEAKAGE = """\
name: leakage
base:
  data: {source: digits}
  model: {name: mlp, options: {widths: [16]}}
  training: {recipe: one-cycle, epochs: 3, batch_size: 64}
  sparsity: {sparsity: 0.8, layers: [linear]}
  forget: {by: class, index: 3}
  runtime: {device: cpu}
variants:
  attacker:
    shared: {leakage: {models: 12, permutations: 20}}
    own, known: {leakage: {models: 12, initial: own, known: true, permutations: 20}}
    own, unknown: {leakage: {models: 12, initial: own, permutations: 20}}
columns: [Topology leakage, Leakage null, Leakage p]
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "plan.yaml"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("topology")
    return root, run_plan(load_plan(write(root, PLAN)), store=root / "store")


def test_overlaps_are_those_of_the_masks(ran) -> None:
    root, run = ran
    assert run.failures == ()
    plan = load_plan(root / "plan.yaml")
    state = PlanState(plan, Store(root / "store"))
    masks, originals = {}, {}
    for cell, chain in zip(plan.cells, state.graph.cells, strict=True):
        key = (cell.labels["method"], cell.labels["seed"])
        masks[key] = Mask.load(state.entry(state.graph.nodes[chain["forget"]]).path / "mask.safetensors")
        originals[cell.labels["seed"]] = load_trained(state.entry(state.graph.nodes[chain["prune"]]).path).mask
    for cell in run.results["cells"]:
        seed = cell["labels"]["seed"]
        assert cell["scores"]["IoU"] == pytest.approx(iou(masks[cell["labels"]["method"], seed], masks["RR", seed]))
        assert cell["scores"]["IoU of the original"] == pytest.approx(iou(originals[seed], masks["RR", seed]))
    (row,) = [one for one in run.results["overlaps"] if one["at"]["method"] == "random"]
    seeds = ("0", "1", "2")
    by_hand = normalised_overlap(
        [iou(masks["random", s], masks["RR", s]) for s in seeds],
        [iou(originals[s], masks["RR", s]) for s in seeds],
        [iou(masks["RR rerun", s], masks["RR", s]) for s in seeds],
    )
    assert row["numerator"]["value"] == pytest.approx(by_hand.numerator.value)
    assert row["ratio"] == (None if by_hand.ratio is None else pytest.approx(by_hand.ratio))
    assert {one["at"]["method"] for one in run.results["overlaps"]} == {"unchanged", "random"}
    table = render_table(read_results(plan.results_path), "markdown")
    assert "| Mask of | Numerator | Denominator | Normalised overlap |" in table
    assert "IoU with reference" in table
    assert "MIA-Efficacy" not in table.split("UA, MIA-Efficacy, RA, TA: mean")[0]


def test_the_memorised_records_are_the_same_for_all_seeds_and_are_ranked_once(ran) -> None:
    root, run = ran
    plan = load_plan(root / "plan.yaml")
    state = PlanState(plan, Store(root / "store"))
    assert sum(node.stage == "memorise" for node in state.graph.nodes.values()) == 1
    assert {cell["forgotten"] for cell in run.results["cells"]} == {40}
    splits = [load_trained(state.entry(state.graph.nodes[chain["forget"]]).path).split for chain in state.graph.cells]
    assert all(np.array_equal(split.forget, splits[0].forget) for split in splits)


def test_the_unchanged_rule_equals_the_method_alone(ran) -> None:
    root, _ = ran
    state = PlanState(load_plan(root / "plan.yaml"), Store(root / "store"))
    entry = state.entry(state.graph.nodes[state.graph.cells[0]["prune"]])
    trained = load_trained(entry.path)
    from expunge.data import forget_random, load_records

    records = load_records("digits")
    request = forget_random(records, trained.split, count=20)
    alone = get_method("FT", epochs=1).forget(trained, request, Context(records, seed=3))
    unchanged = get_method("Un-prune", rule="unchanged", method_options={"epochs": 1}).forget(
        trained, request, Context(records, seed=3)
    )
    assert unchanged.trained.hash == alone.trained.hash
    assert "mask" in unchanged.carried


def test_leakage_cells(tmp_path: Path) -> None:
    run = run_plan(load_plan(write(tmp_path, LEAKAGE)), store=tmp_path / "store")
    assert run.failures == ()
    scores = [cell["scores"] for cell in run.results["cells"]]
    assert scores[0]["Topology leakage"] > 0.9
    assert all(0 < one["Leakage p"] <= 1 for one in scores)
    state = PlanState(load_plan(tmp_path / "plan.yaml"), Store(tmp_path / "store"))
    entries = [state.entry(state.graph.nodes[chain["score"]]) for chain in state.graph.cells]
    about = [Scores.load(entry.path / "scores.json") for entry in entries if entry is not None]
    definitions = [one["Topology leakage"].definition for one in about]
    assert [", known to the attacker" in text for text in definitions] == [False, True, False]
    assert (
        sum(node.stage == "shadow_models" for node in state.graph.nodes.values()) == 2
    )  # known or not: the same models
    assert "Leakage AUC" in render_table(run.results, "markdown")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rerun: RR rerun", "rerun: RR rerum", "no method is labelled 'RR rerum'"),
        ("columns: [IoU,", "columns: [IuO,", "unknown score 'IuO'"),
        ("reference: RR\n", "reference: Retrane\n", "no cell runs Retrane"),
        ("count: 40, models: 6", "models: 6", "needs count"),
        ("count: 40, models: 6", "count: 40, modls: 6", "no key 'modls'"),
    ],
)
def test_plans_that_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    from expunge.experiments import check_plan

    with pytest.raises(ConfigError, match=message):
        check_plan(load_plan(write(tmp_path, PLAN.replace(old, new))))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  runtime", "  method: {name: FT}\n  runtime", "has either `leakage` or `method`"),
        ("layers: [linear]}", "layers: [linear], schedule: imp}", "omp or one-shot"),
        ("  sparsity: {sparsity: 0.8, layers: [linear]}\n", "", "needs the sections"),
    ],
)
def test_leakage_that_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_plan(write(tmp_path, LEAKAGE.replace(old, new)))


def test_a_result_file_of_another_release_is_reported_as_outdated(tmp_path: Path) -> None:
    from expunge.core.files import write_json
    from expunge.experiments import get_plan_status

    plan = load_plan(write(tmp_path, LEAKAGE))
    assert get_plan_status(plan, store=tmp_path / "store").results is None
    write_json(plan.results_path, "expunge.results", 1, {"plan": {"hash": plan.hash}})
    assert get_plan_status(plan, store=tmp_path / "store").results is False
