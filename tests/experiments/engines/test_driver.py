"""Plans on an engine: what the driver sends, what it makes of results, and what it refuses. No cluster is needed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from laboratory import InProcessEngine, Lab

import expunge.experiments.scheduler.engines.driver as driver
import expunge.experiments.scheduler.engines.task as task_module
import expunge.experiments.scheduler.run as run_module
from expunge.core.errors import ConfigError, FileError, StoreError
from expunge.experiments import get_plan_status, load_plan, run_plan
from expunge.experiments.scheduler.engines.base import EngineError, Finished, Task
from expunge.experiments.scheduler.progress import NullReporter, PlanProgress


class Log(NullReporter):
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.last: PlanProgress | None = None

    def log(self, text: str) -> None:
        self.lines.append(text)

    def update(self, progress: PlanProgress) -> None:
        self.last = progress


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Any]:
    """Run plans on this engine."""
    task_module._open.cache_clear()

    def choose(engine: Any) -> Any:
        monkeypatch.setattr(run_module, "open_engine", lambda *arguments: engine)
        return engine

    return choose


def go(lab: Lab, **options: Any) -> Any:
    return run_plan(load_plan(lab.plan), **{"store": lab.store, "stages": lab.stages, "scheduler": "dask", **options})


def table(run: Any) -> Any:
    return [(cell["labels"], cell["state"], cell["scores"]) for cell in run.results["cells"]]


def test_every_stage_is_one_task_and_the_table_is_that_of_the_pool(lab: Lab, use: Any) -> None:
    engine, log = use(InProcessEngine()), Log()
    run = go(lab, reporter=log)
    assert len(engine.tasks) == run.computed == run.total == 29
    assert log.last is not None
    assert (log.last.done, log.last.failed, log.last.seconds_left) == (29, 0, 0.0)
    assert table(run) == table(go(lab, store=lab.root / "pool", scheduler="processes"))
    engine.tasks.clear()
    assert go(lab).computed == 0
    assert engine.tasks == []  # nothing is submitted


def test_dependencies_are_those_of_the_graph(lab: Lab, use: Any) -> None:
    engine = use(InProcessEngine())
    go(lab)
    place = {task.id: number for number, task in enumerate(engine.tasks)}
    for task in engine.tasks:
        assert all(place[i] < place[task.id] for i in task.needs)
        assert set(task.needs) == set(json.loads(task.message)["node"]["inputs"].values())
    assert [task.order for task in engine.tasks] == sorted(task.order for task in engine.tasks)


def test_only_strings_cross_the_wire(lab: Lab, use: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "do-not-send-me")
    engine = use(InProcessEngine())
    go(lab)
    for task in engine.tasks:
        assert type(task.message) is str
        assert "do-not-send-me" not in task.message
        assert len(task.message) < 20_000  # names and configurations, no weights
        assert json.loads(task.message)["store"] == str(lab.store)


def test_a_failed_stage_stops_those_that_need_it_and_no_other(lab: Lab, use: Any) -> None:
    use(InProcessEngine())
    lab.behave("if name == 'forget' and inputs.config['method']['name'] == 'GA': raise ValueError('it diverged')")
    log = Log()
    run = go(lab, reporter=log)
    assert run.exit_code == 1
    failed = [cell for cell in run.results["cells"] if cell["state"] == "failed"]
    assert len(failed) == 4
    assert all("it diverged" in cell["message"] for cell in failed)
    assert sum("FAILED" in line for line in log.lines) == 4  # and not the four that wait for them
    status = get_plan_status(load_plan(lab.plan), store=lab.store, stages=lab.stages)
    assert len(status.failures) == 4
    lab.behave("pass")
    assert go(lab).exit_code == 0


def test_an_engine_that_gives_up_fails_the_stage(lab: Lab, use: Any) -> None:
    """A worker that ends whenever it runs one stage, for want of memory for example."""

    def die(task: Task) -> str:
        if task.title.startswith("prune"):
            raise ConnectionError("KilledWorker s3://me:secret@host/x")
        return task.message

    use(InProcessEngine(before=die))
    run = go(lab)
    failed = [cell for cell in run.results["cells"] if cell["state"] == "failed"]
    assert len(failed) == 6
    assert "in process gave up: ConnectionError: KilledWorker s3://***@host/x" in failed[0]["message"]
    status = get_plan_status(load_plan(lab.plan), store=lab.store, stages=lab.stages)
    assert sum(counts["failed"] for counts in status.stages.values()) == 2  # recorded in the store, too


# ---- another version


def change(**values: Any) -> Callable[[Task], str]:
    def act(task: Task) -> str:
        return json.dumps({**json.loads(task.message), **values})

    return act


def test_a_worker_with_another_version_is_refused_and_both_are_named(lab: Lab, use: Any) -> None:
    own = driver.describe_versions()
    use(InProcessEngine(before=change(versions={**own, "torch": "1.0.0"})))
    # the driver compares what the worker says with its own, so the versions are changed on the worker's side, too
    with pytest.raises(EngineError, match="has another version"):
        go(lab)
    assert lab.started() == []  # nothing was run


def test_the_message_names_both_versions(lab: Lab, use: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own = driver.describe_versions()
    use(InProcessEngine())
    monkeypatch.setattr(task_module, "describe_versions", lambda: {**own, "torch": "2.99.0"})
    with pytest.raises(EngineError) as caught:
        go(lab)
    assert f"torch 2.99.0 (here {own['torch']})" in str(caught.value)
    assert "numpy" not in str(caught.value)


def test_a_worker_with_other_code_is_refused_and_the_module_is_named(
    lab: Lab, use: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(InProcessEngine())
    true = task_module._TaskState.hash_source

    def other(self: Any, stage: Any, node: Any) -> dict[str, str]:
        return {**true(self, stage, node), "expunge.training.loop": "0123456789"}

    monkeypatch.setattr(task_module._TaskState, "hash_source", other)
    with pytest.raises(EngineError, match=r"expunge\.training\.loop 01234567 \(here absent\)"):
        go(lab)
    assert lab.started() == []


def test_a_build_of_the_same_version_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_module, "versions", lambda: {"torch": "2.13.0+cu130", "python": "3.11.9"})
    assert task_module.describe_versions() == {"torch": "2.13.0", "python": driver.describe_versions()["python"]}


# ---- the store


def test_an_entry_that_is_damaged_on_the_way_is_computed_again(lab: Lab, use: Any) -> None:
    """After the driver has looked: the file of an original, when the first stage that reads it is about to start."""
    use(InProcessEngine())
    whole = go(lab, store=lab.root / "whole")
    flipped: list[Path] = []

    def damage(task: Task) -> str:
        if task.title.startswith("forget") and not flipped:
            path = next(lab.store.glob("entries/train/*/value.txt"))
            path.write_text("0" * len(path.read_text()))
            flipped.append(path)
        return task.message

    engine, log = use(InProcessEngine(before=damage)), Log()
    run = go(lab, reporter=log)
    assert run.exit_code == 0
    assert table(run) == table(whole)
    assert "0000" not in flipped[0].read_text()
    assert any("value.txt has other contents than were written" in line for line in log.lines)
    assert len(engine.tasks) > 29  # the original, and what waited for it, were submitted twice


def test_damage_without_end_is_an_error(lab: Lab, use: Any) -> None:
    def damage(task: Task) -> str:
        for path in lab.store.glob("entries/train/*/value.txt"):
            path.write_text("0" * 64)
        return task.message

    use(InProcessEngine(before=damage))
    with pytest.raises(StoreError, match="were damaged again after they had run again"):
        go(lab)


@pytest.mark.parametrize(("which", "computed"), [("Retrain", 4), ("FT", 4), ("", 12)])
def test_scores_that_are_damaged_after_they_were_written(which: str, computed: int, lab: Lab, use: Any) -> None:
    """The workers live on, and know the entries that they wrote, and those that they read."""
    use(InProcessEngine())
    first = go(lab)
    for path in lab.store.glob("entries/score/*/scores.json"):
        if which in json.loads((path.parent / "entry.json").read_text())["label"]:
            path.write_bytes(path.read_bytes().replace(b"fake", b"fate"))
    before = len(lab.started())
    again = go(lab)
    assert len(lab.started()) - before == computed
    assert table(again) == table(first)


def test_workers_with_another_store_are_found_out(lab: Lab, use: Any) -> None:
    use(InProcessEngine(before=change(store=str(lab.root / "elsewhere"))))
    with pytest.raises(StoreError, match="is finished, and its result is not in this store"):
        go(lab)


def test_a_store_that_cannot_be_written_stops_the_run(lab: Lab, use: Any) -> None:
    blocked = lab.root / "blocked"
    blocked.write_text("a file, not a folder")
    use(InProcessEngine(before=change(store=str(blocked))))
    with pytest.raises(StoreError, match=r"blocked on .*the store cannot be written \(Not a directory\)"):
        go(lab)
    assert lab.started() == []


def test_a_full_disk_stops_the_run(lab: Lab, use: Any) -> None:
    use(InProcessEngine())
    lab.behave("if name == 'train': raise OSError(28, 'No space left on device', '/full/file')")
    with pytest.raises(FileError, match="the disk is full"):
        go(lab)
    assert lab.started() == ["data", "train"]


def test_a_store_that_is_away_for_a_moment_is_left_to_the_retries_of_the_engine(
    lab: Lab, use: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(InProcessEngine())

    def lose(self: Any) -> None:
        error = StoreError("the connection was reset")
        error.transient = True
        raise error

    monkeypatch.setattr(task_module._TaskRun, "run", lose)
    run = go(lab)
    assert all("gave up: ConnectionError: the connection was reset" in cell["message"] for cell in run.results["cells"])


def test_a_store_in_memory_is_refused_for_other_processes(lab: Lab) -> None:
    pytest.importorskip("fsspec")
    with pytest.raises(ConfigError, match="is seen by one process only"):
        go(lab, store="memory://x", scheduler="processes", workers=2)


# ---- what an engine yields, and resources


def test_an_engine_that_is_closed_early_cancels_the_rest(lab: Lab, use: Any) -> None:
    closed = []

    class Refusing(InProcessEngine):
        def execute(self, tasks: Any) -> Any:
            try:
                yield Finished(
                    tasks[0].id, result=json.dumps({"id": "", "state": "refused", "host": "h", "versions": {}})
                )
            finally:
                closed.append(True)

    use(Refusing())
    with pytest.raises(EngineError):
        go(lab)
    assert closed == [True]


def test_resources_of_a_plan(lab: Lab, use: Any) -> None:
    engine = use(InProcessEngine())
    before = load_plan(lab.plan).hash
    lab.plan.write_text(lab.plan.read_text() + "resources:\n  train: {gpu: 1, memory: 8 GiB}\n  score: {slot: 0.5}\n")
    assert load_plan(lab.plan).hash == before  # nothing is computed again
    go(lab)
    found = {task.title.split()[0]: task.resources for task in engine.tasks}
    assert found["train"] == {"gpu": 1.0, "memory": 8.0 * 2**30}
    assert found["score"] == {"slot": 0.5}
    assert found["data"] == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{trian: {gpu: 1}}", "a plan has no stage 'trian'"),
        ("{train: {gpu: -1}}", "-1 is not a positive amount of gpu"),
        ("{train: {gpu: true}}", "True is not a positive amount of gpu"),
        ("{train: {memory: much}}", "'much' is not a positive amount of memory"),
        ("{train: {memory: 0 GB}}", "'0 GB' is not a positive amount of memory"),
        ("{train: {gpu: .inf}}", "is inf, not a finite number"),
    ],
)
def test_resources_that_mean_nothing(lab: Lab, text: str, message: str) -> None:
    lab.plan.write_text(f"{lab.plan.read_text()}resources: {text}\n")
    with pytest.raises(ConfigError, match=message) as caught:
        load_plan(lab.plan)
    assert "tiny.yaml" in str(caught.value)
