"""The table of methods: the arithmetic of its estimates, what is timed, and how long the probe may take."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from expunge.core.errors import ExpungeError
from expunge.core.trained import Trained
from expunge.data import forget_random, load_records, make_split
from expunge.data.records import Records
from expunge.experiments import load_config
from expunge.methods import check_usable, get_method
from expunge.methods.reads import Reads, Sizes
from expunge.models import architecture, save_trained
from expunge.training import Runtime, get_recipe, train
from expunge.workflow import MethodCost, Probe, check_run, forget, measure_speed, render_costs
from expunge.workflow.costs.table import estimate_methods, format_seconds
from expunge.workflow.forget import make_original_model

RUN = """
data: {source: digits}
split: {limit: 100}
model: {name: mlp, options: {widths: [8]}}
training: {recipe: one-cycle, epochs: 2}
forget: {by: random, count: 10}
method: {name: FT, options: {epochs: 3, batch_size: 16}}
runtime: {device: cpu}
"""


def test_the_passes_are_those_that_the_run_counts(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(RUN)
    config = load_config(path)
    found = check_run(config, costs=True, probe=False)
    rows = {row.name: row for row in found.methods}
    result = forget(config, tmp_path / "out", store=tmp_path / "store")
    assert rows["FT"].passes == result.outcome["cost"]["passes"] == 3  # with the configured options
    assert rows["Retrain"].passes == 2
    assert rows["FT"].seconds is None
    assert not rows["UNSIR"].works  # for whole classes
    assert "whole class" in rows["UNSIR"].reason
    body = json.loads(json.dumps(found.to_json()))
    assert {row["name"] for row in body["methods"]} == set(rows)
    assert body["probe"] is None
    assert "these cannot run here:" in found.text()
    assert found.text().endswith("this would run")


@pytest.mark.parametrize("pruned", ["", "configured", "imported"])
def test_the_announced_guarantee_is_that_of_the_outcome(pruned: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(RUN)
    changes = ["method={name: Retrain}", "sparsity={sparsity: 0.5, layers: [linear]}" if pruned else "seed=0"]
    config = load_config(tmp_path / "run.yaml", changes)
    if pruned == "imported":
        saved = make_original_model(config, tmp_path / "original", pruned=True, store=tmp_path / "store").directory
        imported = [f"model.weights={saved}/model.safetensors", f"model.mask={saved}/mask.safetensors"]
        config = load_config(tmp_path / "run.yaml", ["method={name: Retrain}", *imported])
    outcome = forget(config, tmp_path / "out", store=tmp_path / "store").outcome
    guarantee = outcome["method"]["guarantee"]
    assert guarantee == ("empirical" if pruned else "exact")
    found = check_run(config, costs=True, probe=False)
    assert {row.name: row.guarantee for row in found.methods}["Retrain"] == guarantee
    assert f"Retrain, guarantee {guarantee}" in [finding.message for finding in found.findings]


def test_without_costs_nothing_is_estimated(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(RUN)
    found = check_run(load_config(tmp_path / "run.yaml"))
    assert found.methods == ()
    assert "methods" not in found.to_json()


def test_a_wrong_configuration_has_no_table(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(RUN)
    found = check_run(load_config(tmp_path / "run.yaml", ["model.options.widhts=[3]"]), costs=True)
    assert not found.usable
    assert found.methods == ()


class Clock:
    """Time that passes only in the network: 1 s for a record forward, 2 s more where gradients are on."""

    def __init__(self) -> None:
        self.now, self.sizes = 0.0, []  # type: float, list[tuple[int, bool]]

    def __call__(self) -> float:
        return self.now


class Timed(nn.Module):
    def __init__(self, clock: Clock, seconds: float) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)
        self.clock, self.seconds = clock, seconds

    def __deepcopy__(self, memo: dict[int, Any]) -> Timed:
        return Timed(self.clock, self.seconds)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        training = torch.is_grad_enabled()
        self.clock.sizes.append((len(x), training))
        self.clock.now += len(x) * self.seconds * (3 if training else 1)
        return self.linear(x.flatten(1))


@pytest.mark.parametrize("seconds", [0.001, 0.1, 4.0])
def test_the_probe_measures_seconds_a_record_and_ends(seconds: float, digits: Records, cpu: Runtime) -> None:
    clock = Clock()
    model = Timed(clock, seconds)
    probe = measure_speed(model, digits, np.arange(5), runtime=cpu, batch_size=64, clock=clock)
    assert probe.forward == pytest.approx(seconds)
    assert probe.train == pytest.approx(3 * seconds)
    assert probe.seconds == clock.now
    assert clock.now < max(8.0, 8 * 3 * 2 * seconds)  # two records at a time if they are slow
    assert {training for _, training in clock.sizes} == {False, True}
    assert probe.estimate(10, 100) == pytest.approx(130 * seconds)


def test_the_probe_changes_no_model_and_no_generator(dense: Trained, digits: Records, cpu: Runtime) -> None:
    before, state = dense.hash, torch.get_rng_state()
    measure_speed(dense.model, digits, np.arange(16), runtime=cpu)
    assert dense.hash == before
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in dense.model.parameters())


def test_the_text() -> None:
    rows = [
        MethodCost("FT", "empirical", True, reads="3 passes over D_r", passes=3.0, seconds=75.0),
        MethodCost("slow", "exact", True, reads="at most 9 passes over D_r", passes=9.0, at_most=True),
        MethodCost("odd", "empirical", True),
        MethodCost("UNSIR", "empirical", False, reason="not a class"),
    ]
    text = render_costs(rows, Probe(0.001, 0.002, 8, 6, "cpu", 1, 0.1)).splitlines()
    assert text[1].split() == ["FT", "empirical", "3", "75", "s", "3", "passes", "over", "D_r"]
    assert "<= 9" in text[2]
    assert text[3].endswith("not known before it runs")
    assert "6 batches of 8 records were timed on cpu" in text[4]
    assert text[-1] == "  UNSIR  not a class"
    assert [format_seconds(value) for value in (0.5, 89, 91, 6000)] == ["0.5 s", "89 s", "1.5 min", "1.7 h"]


def test_reads_in_words() -> None:
    sizes = Sizes(retain=100, forget=10, validation=20, classes=3)
    reads = 2 * Reads(retain=100, forget=10) + Reads(forget_forward=5, other_forward=20, at_most=True)
    assert reads.describe(sizes) == (
        "at most 2 passes over D_r, 2 over D_f; forward only: 0.5 passes over D_f, 20 other records"
    )
    assert reads.passes(100) == pytest.approx((220 + 25 / 3) / 100)
    assert Reads().describe(sizes) == "no record"


def test_records_that_only_go_forward_take_time_too() -> None:
    sizes = Sizes(100, 5, 30, 10)
    method: Any = SimpleNamespace(
        guarantee="empirical", describe_cost=lambda trained: None, find_guarantee=lambda trained: "empirical",
        estimate_reads=lambda trained, sizes: Reads(retain=sizes.retain, other_forward=sizes.validation),
    )  # fmt: skip
    probe: Any = SimpleNamespace(estimate=lambda trained, forward: trained + forward / 1000)
    trained: Any = object()
    (row,) = estimate_methods([("any", lambda: method)], lambda method: None, trained, sizes, probe)
    assert row.seconds == 100 + 30 / 1000


def test_the_reasons_are_those_that_python_gives(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(RUN)
    records = load_records("digits")
    split = make_split(records, seed=0, limit=100)
    network = architecture("mlp", records, split, widths=(8,))
    original = train(records, split, network, recipe=get_recipe("one-cycle", epochs=2), runtime=Runtime("cpu"))
    save_trained(original, tmp_path / "own")
    given = [f"model.weights={tmp_path}/own/model.safetensors", f"split.file={tmp_path}/own/split.json"]
    config = load_config(tmp_path / "run.yaml", given)
    chosen = forget_random(records, original.split, count=10, seed=0)
    table = check_run(config, costs=True, probe=False).methods
    refused = {row.name: row.reason for row in table if not row.works}
    for name in ("mixed-privacy", "UNSIR", "mask-logit"):
        with pytest.raises(ExpungeError) as caught:
            check_usable(get_method(name), original, records, chosen)
        assert caught.value.what == refused[name]
    assert "not trained by this method" in refused["mixed-privacy"]  # although some records of D_f are core
