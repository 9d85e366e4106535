"""The driver of worker processes looks only at what is new, and a run forecasts its end without quadratic work."""

from __future__ import annotations

from pathlib import Path

import pytest
from laboratory import Lab

from expunge.experiments import forecast_plan, get_plan_status, load_plan, run_plan
from expunge.experiments.scheduler.forecast import Forecaster, read_others
from expunge.experiments.scheduler.progress import PlanProgress
from expunge.experiments.scheduler.status import PlanState
from expunge.experiments.scheduler.watch import Watcher
from expunge.experiments.stages.registry import load_stage_table
from expunge.experiments.store.shared import SharedStore
from expunge.experiments.store.store import Store


class Recording:
    """A reporter that keeps what it receives."""

    def __init__(self) -> None:
        self.progress: list[PlanProgress] = []
        self.lines: list[str] = []

    def update(self, progress: PlanProgress) -> None:
        self.progress.append(progress)

    def log(self, text: str) -> None:
        self.lines.append(text)

    def step(self, label: str, done: int, total: int, info: dict[str, object]) -> None:
        pass


def make_state(lab: Lab) -> PlanState:
    return PlanState(load_plan(lab.plan), Store(lab.store), load_stage_table(lab.stages))


def test_a_look_reads_each_stage_once(lab: Lab) -> None:
    watcher = Watcher(make_state(lab), 0.0)
    assert watcher.look() == []
    assert watcher.checked == 0
    run_plan(load_plan(lab.plan), store=lab.store, stages=lab.stages)
    found = watcher.look()
    assert [node.id for node, _, _ in found] == sorted(
        watcher.state.graph.nodes, key=[node.id for node, _, _ in found].index
    )
    assert all(entry is not None for _, entry, _ in found)
    assert not watcher.pending
    assert watcher.checked == len(found) == 29
    assert watcher.look() == []
    assert watcher.checked == 29  # nothing is read again


def test_a_failure_stops_all_that_need_it(lab: Lab) -> None:
    lab.behave('if name == "train" and inputs.config["seed"] == 1: raise ValueError("broken")')
    run_plan(load_plan(lab.plan), store=lab.store, stages=lab.stages)
    watcher = Watcher(make_state(lab), 0.0)
    found = watcher.look()
    assert len(watcher.failed) == 1 + 1 + 6 + 6  # train, prune, forget, score of one seed
    assert len([entry for _, entry, _ in found if entry is None]) == 14
    assert not watcher.pending
    assert all("ValueError: broken" in message for _, entry, message in found if entry is None)
    late = Watcher(make_state(lab), 2e9)  # the failure is older
    late.look()
    assert not late.failed
    assert len(late.pending) == 14


def test_the_end_is_forecast_again_a_limited_number_of_times(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    text = lab.plan.read_text().replace("seed: [0, 1]", f"seed: {list(range(8))}")
    lab.plan.write_text(text)
    made: list[Forecaster] = []
    first = Forecaster.__init__
    monkeypatch.setattr(Forecaster, "__init__", lambda self, *a, **k: (first(self, *a, **k), made.append(self))[0])
    reporter = Recording()
    run = run_plan(load_plan(lab.plan), store=lab.store, stages=lab.stages, reporter=reporter)
    assert run.total == 1 + 8 + 8 + 48 + 48
    assert len(reporter.progress) == run.total  # every stage is reported
    assert made[0].simulations <= 60
    assert [progress.done for progress in reporter.progress] == list(range(1, run.total + 1))
    assert reporter.progress[-1].seconds_left == 0.0


def test_a_run_says_when_it_ends(lab: Lab) -> None:
    lab.behave("time.sleep(0.02)")
    reporter = Recording()
    run_plan(load_plan(lab.plan), store=lab.store, stages=lab.stages, reporter=reporter)
    halfway = reporter.progress[len(reporter.progress) // 2]
    assert halfway.seconds_left is not None
    assert halfway.low is not None
    assert halfway.high is not None
    assert 0 < halfway.low < halfway.seconds_left < halfway.high
    assert "left" in halfway.describe()
    assert "ends at" in halfway.describe()


def test_workers_are_in_the_forecast(lab: Lab) -> None:
    lab.plan.write_text(lab.plan.read_text().replace("seed: [0, 1]", "seed: [0]"))
    lab.behave("time.sleep(0.05)")
    run_plan(load_plan(lab.plan), store=lab.store, stages=lab.stages)
    lab.plan.write_text(lab.plan.read_text().replace("seed: [0]", "seed: [0, 1, 2, 3]"))
    one, two = (
        forecast_plan(load_plan(lab.plan), store=lab.store, stages=lab.stages, workers=workers) for workers in (1, 2)
    )
    assert one.unknown == two.unknown == 0
    assert one.seconds is not None
    assert two.seconds is not None
    assert 0.45 < two.seconds / one.seconds < 0.7  # of six chains of stages, three at a time
    assert {row.basis for row in one.stages} == {"from 1 finished stage like it"} | {
        row.basis for row in one.stages if "what its process loaded" in row.basis
    }
    assert one.memory is not None
    assert two.memory == 2 * one.memory or two.memory > one.memory
    status = get_plan_status(load_plan(lab.plan), store=lab.store, stages=lab.stages, workers=2)
    assert status.forecast == two
    assert status.seconds_left == two.seconds
    assert "with 2 workers" in status.render()


def test_stages_of_another_plan_in_the_store_are_used(lab: Lab, tmp_path: Path) -> None:
    run_plan(load_plan(lab.plan), store=lab.store, stages=lab.stages)
    other = tmp_path / "other.yaml"
    other.write_text(lab.plan.read_text().replace("name: tiny", "name: other").replace("seed: [0, 1]", "seed: [7]"))
    found = forecast_plan(load_plan(other), store=lab.store, stages=lab.stages)
    assert found.unknown == 0
    assert sum(row.count for row in found.stages) == 1 + 1 + 6 + 6  # the data stage is shared
    assert all("like it" in row.basis for row in found.stages)
    empty = forecast_plan(load_plan(other), store=tmp_path / "empty", stages=lab.stages)
    assert (empty.seconds, empty.unknown) == (None, 15)
    assert {row.basis for row in empty.stages} == {"unknown"}
    assert "time left: unknown" in empty.render()


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_stores_at_urls_are_watched_and_teach(
    kind: str, lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec = pytest.importorskip("fsspec")
    monkeypatch.setenv("EXPUNGE_CACHE_DIR", str(tmp_path / "cache"))
    url = f"file://{tmp_path}/shared" if kind == "file" else "memory://shared/watched"
    plan, table = load_plan(lab.plan), load_stage_table(lab.stages)
    lab.behave('if name == "train" and inputs.config["seed"] == 1: raise ValueError("broken")')
    try:
        run_plan(plan, store=url, stages=lab.stages)
        other = SharedStore(url, tmp_path / "machine-2")  # it has no working copy yet
        watcher = Watcher(PlanState(plan, other, table), 0.0)
        found = watcher.look()
        assert "broken" in next(message for node, _, message in found if node.stage == "train" and message)
        assert not watcher.pending
        known = {entry.key for _, entry, _ in found if entry is not None}
        assert len(known) == watcher.checked - 1 > 5
        third = SharedStore(url, tmp_path / "machine-3")
        assert {entry.key for _, entry in read_others(third, ("data", "prune", "train"))} <= known
        monkeypatch.setenv("EXPUNGE_CACHE_DIR", str(tmp_path / "machine-4"))
        forecast = forecast_plan(plan, store=url, stages=lab.stages)
        assert forecast.seconds is not None
        assert any("finished stage" in row.basis for row in forecast.stages)
    finally:
        if kind == "memory":
            fsspec.filesystem("memory").store.clear()
