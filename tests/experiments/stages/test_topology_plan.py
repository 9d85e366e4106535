"""Plans about topologies: a reference by label, a rerun reference, memorised records, leakage."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from expunge.core.errors import ConfigError
from expunge.core.files import read_json
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

GAMES = """\
name: games
base:
  data: {source: digits}
  model: {name: mlp, options: {widths: [8]}}
  training: {recipe: one-cycle, epochs: 3, batch_size: 64}
  sparsity: {sparsity: 0.8, layers: [linear]}
  forget: {by: memorised, count: 40, models: 4, seed: 1}
  leakage: {models: 6, permutations: 20}
  runtime: {device: cpu}
variants:
  game:
    unlearned: {leakage.game: unlearned}
    two requests: {leakage.game: two-requests, leakage.other: {by: memorised, count: 40, models: 4, seed: 1}}
  mask:
    unchanged: {leakage.processing: unchanged}
    replay 1: {leakage.processing: replay, leakage.prefix_epochs: 1}
    replay 3: {leakage.processing: replay, leakage.prefix_epochs: 3}
    retrained: {leakage.processing: retrained}
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


def test_cells_of_masks_that_forget(tmp_path: Path) -> None:
    """Replay of all three epochs is retraining; the trained models are shared; the ranking gives both sets."""
    plan = load_plan(write(tmp_path, GAMES))
    run = run_plan(plan, store=tmp_path / "store")
    assert run.failures == ()
    cells = {(c["labels"]["game"], c["labels"]["mask"]): c["scores"] for c in run.results["cells"]}
    for game in ("unlearned", "two requests"):
        assert cells[game, "replay 3"] == cells[game, "retrained"]
        assert cells[game, "replay 1"] != cells[game, "retrained"]
    state = PlanState(plan, Store(tmp_path / "store"))
    counts = Counter(node.stage for node in state.graph.nodes.values())
    assert counts["shadow_models"] == 4  # for each game: trained, retrained
    assert counts["shadow_replay"] == 4
    assert counts["memorise"] == 1
    chain = state.graph.cells[[c.labels for c in plan.cells].index({"game": "two requests", "mask": "replay 1"})]
    body = read_json(
        state.entry(state.graph.nodes[chain["shadow_models"]]).path / "request.json", "expunge.shadow_models", 1
    )
    first, second = (set(body[name]["record_ids"]) for name in ("request", "other"))
    assert len(first) == len(second) == 40
    assert not first & second
    scores = Scores.load(state.entry(state.graph.nodes[chain["score"]]).path / "scores.json")
    text = scores["Topology leakage"].definition
    assert "models that forget D_f by replay of 1 epoch against 3 that forget another set by replay" in text


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
        ("permutations: 20}", "permutations: 20, game: two-requests}", "needs `other`"),
        ("permutations: 20}", "permutations: 20, other: {by: random}}", "needs `other`"),
        ("permutations: 20}", "permutations: 20, processing: retrained}", "nothing is forgotten"),
        ("permutations: 20}", "permutations: 20, game: unlearned, processing: replay}", "needs prefix_epochs"),
        ("permutations: 20}", "permutations: 20, game: unlearned, prefix_epochs: 1}", "needs prefix_epochs"),
        ("permutations: 20}", "permutations: 20, game: unlearned, scale: 2}", "only the processing replay"),
        (
            "permutations: 20}",
            "permutations: 20, game: two-requests, other: {by: memorised, count: 2}}",
            "equal models and seed",
        ),
    ],
)
def test_leakage_that_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_plan(write(tmp_path, LEAKAGE.replace(old, new)))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("game: unlearned, processing: replay, prefix_epochs: 4", "4 epochs of a recipe of 3"),
        ("game: two-requests, other: {by: random, fractoin: 0.1}", "no key 'fractoin'"),
    ],
)
def test_games_that_a_check_refuses(tmp_path: Path, keys: str, message: str) -> None:
    from expunge.experiments import check_plan

    text = LEAKAGE.replace("permutations: 20}", f"permutations: 20, {keys}}}", 1)
    with pytest.raises(ConfigError, match=message):
        check_plan(load_plan(write(tmp_path, text)))


def test_new_keys_do_not_change_the_hash_of_a_plan(tmp_path: Path) -> None:
    """The hash is that of the release before the games."""
    assert (
        load_plan(write(tmp_path, LEAKAGE)).hash == "0f904ace1c75e59f9b58807c3ef1a44f9fb39fd2accca47135c780d828d71f72"
    )
    spelled = LEAKAGE.replace("permutations: 20}", "permutations: 20, game: trained, processing: unchanged, scale: 1}")
    assert (
        load_plan(write(tmp_path, spelled)).hash == "0f904ace1c75e59f9b58807c3ef1a44f9fb39fd2accca47135c780d828d71f72"
    )


def test_a_result_file_of_another_release_is_reported_as_outdated(tmp_path: Path) -> None:
    from expunge.core.files import write_json
    from expunge.experiments import get_plan_status

    plan = load_plan(write(tmp_path, LEAKAGE))
    assert get_plan_status(plan, store=tmp_path / "store").results is None
    write_json(plan.results_path, "expunge.results", 1, {"plan": {"hash": plan.hash}})
    assert get_plan_status(plan, store=tmp_path / "store").results is False
