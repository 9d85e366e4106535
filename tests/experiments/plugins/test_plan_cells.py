"""What the cells of a plan name: inner code in keys, options that a rule does not use, methods that train."""

from __future__ import annotations

from pathlib import Path

import pytest

from expunge.core.errors import ConfigError, MethodError
from expunge.core.registry import METHODS
from expunge.experiments import check_cells, check_plan, is_plan, load_config, load_plan, run_plan
from expunge.experiments.scheduler.graph import Node, build_graph
from expunge.experiments.scheduler.status import PlanState
from expunge.experiments.store.store import Store
from expunge.models import load_trained
from expunge.workflow import check_inputs, check_plan_cells, forget, make_original_model

BASE = """
  data: {source: digits}
  split: {limit: 120}
  model: {name: mlp, options: {widths: [6]}}
  training: {recipe: one-cycle, epochs: 1}
  forget: {by: random, count: 5}
  runtime: {device: cpu}
"""
SPARSE = "  sparsity: {sparsity: 0.5, layers: [linear]}\n"


def write_plan(folder: Path, methods: str, base: str = BASE) -> Path:
    path = folder / "plan.yaml"
    path.write_text(f"name: cells\nbase:{base}grid:\n  method:\n{methods}")
    return path


def find_sources(folder: Path, path: Path) -> dict[str, set[str]]:
    """Label of a cell to the modules that the key of its stage `forget` covers."""
    plan = load_plan(path)
    state = PlanState(plan, Store(folder / "store"))
    found = {}
    for cell, chain in zip(plan.cells, state.graph.cells, strict=True):
        node = state.graph.nodes[chain["forget"]]
        found[cell.labels["method"]] = set(state.hash_source(state.stages["forget"], node))
    return found


def test_the_key_of_un_pruning_covers_its_inner_method(tmp_path: Path) -> None:
    methods = """
    Retrain: {name: Retrain}
    by-name: {name: un-prune, options: {method: ga}}
    default: {name: Un-prune}
    rule: {name: Un-prune, options: {rule: influence}}
"""
    found = find_sources(tmp_path, write_plan(tmp_path, methods, BASE + SPARSE))
    assert "expunge.methods.ga" in found["by-name"]
    assert "expunge.methods.ga" not in found["default"]
    assert "expunge.methods.ft" in found["default"]
    assert "expunge.methods.unprune.rules.influence" in found["rule"]
    assert "expunge.methods.unprune.rules.influence" not in found["default"]


def test_the_key_covers_how_the_model_was_pruned(tmp_path: Path) -> None:
    """Retrain repeats the pruning; so its key depends on the criterion, and on that of its own model alone."""
    methods = "    Retrain: {name: Retrain}\n"
    dense = find_sources(tmp_path, write_plan(tmp_path, methods))["Retrain"]
    sparse = "  sparsity: {sparsity: 0.5, layers: [linear], criterion: SNIP, schedule: at-init}\n"
    pruned = find_sources(tmp_path, write_plan(tmp_path, methods, BASE + sparse))["Retrain"]
    assert "expunge.sparsity.criteria.gradient" in pruned - dense
    assert "expunge.sparsity.schedules.from_initialisation" in pruned - dense
    assert "expunge.sparsity.criteria.channel" not in pruned
    imported = BASE.replace("widths: [6]}", "widths: [6]}, weights: w.safetensors")
    (tmp_path / "w.safetensors").write_bytes(b"")
    any_mask = find_sources(tmp_path, write_plan(tmp_path, methods, imported.replace("w.saf", f"{tmp_path}/w.saf")))
    assert {"expunge.sparsity.criteria.gradient", "expunge.sparsity.criteria.channel"} <= any_mask["Retrain"]


def test_names_in_another_case_are_one_stage(tmp_path: Path) -> None:
    def ids(base: str) -> list[str]:
        path = write_plan(tmp_path, "    Retrain: {name: Retrain}\n", base)
        return list(build_graph(load_plan(path).cells).nodes)

    assert ids(BASE) == ids(BASE.replace("digits", "Digits").replace("name: mlp", "name: MLP"))


UNUSED = "    unchanged: {name: Un-prune, options: {rule: unchanged, growth: 0.5, method_options: {epochs: 1}}}\n"


def test_options_that_a_rule_does_not_use_are_dropped_by_plans_and_printed(tmp_path: Path) -> None:
    path = write_plan(tmp_path, "    Retrain: {name: Retrain}\n" + UNUSED, BASE + SPARSE)
    plan = load_plan(path)
    note = "method unchanged: the method does not use growth=0.5: dropped"
    assert check_plan(plan) == [note]
    assert [dict(group.dropped) for group in check_cells(plan)] == [{}, {"growth": 0.5}]
    text = check_plan_cells(plan).text()
    assert "warning  method unchanged: the method does not use growth=0.5: dropped" in text
    assert "2 cells, 7 stages: 1 data, 1 train, 1 prune, 2 forget, 2 score" in text
    assert text.endswith("this would run")

    class Log:
        lines: list[str]

        def __init__(self) -> None:
            self.lines = []

        def log(self, text: str) -> None:
            self.lines.append(text)

        def update(self, progress: object) -> None:
            pass

        def step(self, *arguments: object) -> None:
            pass

    log = Log()
    run = run_plan(plan, store=tmp_path / "store", reporter=log)  # type: ignore[arg-type]
    assert run.failures == ()
    assert log.lines[0] == note


def test_a_configuration_of_one_run_refuses_them(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text((BASE + SPARSE).replace("\n  ", "\n"))
    method = "method={name: Un-prune, options: {rule: unchanged, growth: 0.5}}"
    with pytest.raises(MethodError, match="does not use growth"):
        check_inputs(load_config(tmp_path / "run.yaml", [method]))


def test_every_error_of_a_plan_is_listed(tmp_path: Path) -> None:
    path = write_plan(
        tmp_path,
        "    Retrain: {name: Retrain}\n    FT: {name: FT, options: {epoch: 1}}\n    GAA: {name: GAA}\n",
    )
    check = check_plan_cells(load_plan(path))
    assert not check.usable
    errors = {finding.subject: finding for finding in check.findings if finding.level == "error"}
    assert set(errors) == {"method FT", "method GAA"}
    assert "no option 'epoch'" in errors["method FT"].message
    assert "did you mean 'GA'" in errors["method GAA"].hint


def test_plans_and_configurations_are_told_apart(tmp_path: Path) -> None:
    plan = write_plan(tmp_path, "    Retrain: {name: Retrain}\n")
    (tmp_path / "run.yaml").write_text(BASE.replace("\n  ", "\n"))
    assert is_plan(plan)
    assert not is_plan(tmp_path / "run.yaml")
    with pytest.raises(ConfigError, match="no such file"):
        is_plan(tmp_path / "none.yaml")


TRAINER = """
import dataclasses
import torch
from expunge.core.trained import Trained
from expunge.methods import Method, register_method
from expunge.training import train

@register_method("Remember", guarantee="empirical", citation="a test", trains=True)
@dataclasses.dataclass(frozen=True)
class Remember(Method):
    \"\"\"Store a number during training; unlearning subtracts it.\"\"\"

    number: float = 2.0

    def fit(self, records, split, architecture, *, recipe, context):
        trained = train(records, split, architecture, recipe=recipe, seed=context.seed, runtime=context.runtime)
        state = {**trained.state, "remembered": {"number": torch.tensor([self.number])}}
        return dataclasses.replace(trained, state=state)

    def check_state(self, trained):
        assert "remembered" in trained.state

    def unlearn(self, task):
        with torch.no_grad():
            for parameter in task.model.parameters():
                parameter.sub_(task.trained.state["remembered"]["number"].item())
"""


def test_stage_train_calls_the_fit_of_a_method_and_retrain_keeps_the_plain_original(tmp_path: Path) -> None:
    (tmp_path / "remembering.py").write_text(TRAINER)
    path = write_plan(
        tmp_path,
        "    Retrain: {name: Retrain}\n    FT: {name: FT, options: {epochs: 1}}\n"
        "    Remember: {name: 'remembering:Remember', options: {number: 3.0}}\n",
    )
    plan = load_plan(path)
    with METHODS.temporary():
        run = run_plan(plan, store=tmp_path / "store")
        assert run.failures == ()
        state = PlanState(plan, Store(tmp_path / "store"))
        trains: list[Node] = [state.graph.nodes[chain["train"]] for chain in state.graph.cells]
        assert trains[0] is trains[1]
        assert "method" not in trains[0].config
        assert trains[2].config["method"]["options"] == {"number": 3.0}
        plain, own = (load_trained(state.entry(node).path) for node in (trains[0], trains[2]))  # type: ignore[union-attr]
        assert plain.hash == own.hash, "the same recipe and seeds"
        assert own.state["remembered"]["number"].tolist() == [3.0]
        before = set(state.hash_source(state.stages["train"], trains[0]))
        after = set(state.hash_source(state.stages["train"], trains[2]))
        assert "remembering" in after - before
        (tmp_path / "run.yaml").write_text(BASE.replace("\n  ", "\n"))
        config = load_config(tmp_path / "run.yaml", ["method.name=remembering:Remember"])
        result = forget(config, tmp_path / "out", store=tmp_path / "store")
        assert result.outcome["method"]["name"] == "Remember"
        original = make_original_model(config, tmp_path / "trained", pruned=False, store=tmp_path / "store")
        assert "remembered" in load_trained(original.directory).state
