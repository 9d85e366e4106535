"""Plans on Dask and Ray as they are: their schedulers, their workers, their answers to a death."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from laboratory import Lab

import expunge.experiments.scheduler.engines.task as task_module
from expunge.core.errors import ExpungeError
from expunge.experiments import load_plan, run_plan
from expunge.experiments.scheduler.engines.base import EngineError
from expunge.experiments.scheduler.progress import NullReporter


class Log(NullReporter):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, text: str) -> None:
        self.lines.append(text)


def table(run: Any) -> Any:
    return [(cell["labels"], cell["state"], cell["scores"]) for cell in run.results["cells"]]


def go(lab: Lab, scheduler: str, **options: Any) -> Any:
    options = {"store": lab.store, "stages": lab.stages, "results": lab.root / "r.json", **options}
    return run_plan(load_plan(lab.plan), scheduler=scheduler, **options)


# ---- Dask, with workers in threads of this process: the scheduler and the protocol are those of a cluster


@pytest.fixture
def threads() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed")
    task_module._open.cache_clear()
    cluster = distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, protocol="tcp", dashboard_address=":0", silence_logs=50,
        resources={"GPU": 1},
    )  # fmt: skip
    yield cluster
    with contextlib.suppress(Exception):
        cluster.close(timeout=5)


def address(cluster: Any) -> str:
    return f"dask://{cluster.scheduler_address.removeprefix('tcp://')}"


def test_dask_gives_the_table_of_the_pool(lab: Lab, threads: Any) -> None:
    run = go(lab, address(threads))
    assert run.computed == run.total == 29
    assert table(run) == table(go(lab, "processes", store=lab.root / "pool"))
    started = len(lab.started())
    assert go(lab, address(threads)).computed == 0
    assert len(lab.started()) == started


def test_two_threads_of_a_worker_run_one_stage_at_a_time(lab: Lab, threads: Any) -> None:
    lab.behave("time.sleep(0.01)")
    go(lab, address(threads))
    lines = [line.split()[0] for line in lab.file("log.txt").read_text().splitlines()]
    assert lines == ["start", "end"] * 29


def test_failures_go_through_dask(lab: Lab, threads: Any) -> None:
    lab.behave("if name == 'forget' and inputs.config['method']['name'] == 'GA': raise ValueError('it diverged')")
    run = go(lab, address(threads))
    failed = [cell["message"] for cell in run.results["cells"] if cell["state"] == "failed"]
    assert len(failed) == 4
    assert all("it diverged" in message for message in failed)


def test_dask_tries_again_when_the_store_was_away(lab: Lab, threads: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    true, calls = task_module._TaskRun.run, []

    def lose(self: Any) -> Any:
        calls.append(self.node.id)
        if len(calls) in (1, 2, 5):  # of the first stage twice, of a later one once
            raise ConnectionResetError("reset")
        return true(self)

    monkeypatch.setattr(task_module._TaskRun, "run", lose)
    assert go(lab, address(threads)).exit_code == 0
    assert len(calls) == 29 + 3


def test_resources_are_those_of_dask(lab: Lab, threads: Any) -> None:
    text = lab.plan.read_text()
    lab.plan.write_text(f"{text}resources: {{train: {{gpu: 1}}}}\n")
    assert go(lab, address(threads)).exit_code == 0
    lab.plan.write_text(f"{text}resources: {{train: {{gpu: 2}}}}\n")
    with pytest.raises(EngineError, match="needs gpu: 2, and no worker has that"):
        go(lab, address(threads), store=lab.root / "other")


def test_a_worker_without_the_code_of_the_stages(lab: Lab, threads: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its module is found by the driver and not by the worker."""

    def miss(self: Any, stage: Any, node: Any) -> Any:
        raise ExpungeError("the module has no source file", where=stage.module)

    monkeypatch.setattr(task_module._TaskState, "hash_source", miss)
    with pytest.raises(EngineError, match=r"another version: .*the module has no source file"):
        go(lab, address(threads))


# ---- processes that die


@contextlib.contextmanager
def dask_processes(lab: Lab, workers: int, first: str = "") -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """A scheduler and workers with nannies, each a process as `dask scheduler` and `dask worker` start it.

    Args:
        lab: its folder has their files.
        workers: their number.
        first: a folder from which the workers import before all others.
    """
    pytest.importorskip("distributed")
    path = lab.root / "scheduler.json"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(lab.root), *sys.path]), "OMP_NUM_THREADS": "1"}
    theirs = {**environment, "PYTHONPATH": os.pathsep.join([*filter(None, [first]), environment["PYTHONPATH"]])}
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    common = ["--scheduler-file", str(path), "--no-dashboard"]
    start = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", *common]
    processes = [subprocess.Popen(start, env=environment, **quiet)]
    try:
        for number in range(workers):
            folder = ["--local-directory", str(lab.root / f"dask-{number}")]
            command = [sys.executable, "-m", "distributed.cli.dask_worker", "--nthreads", "1", *folder, *common]
            processes.append(subprocess.Popen(command, env=theirs, **quiet))
        end = time.monotonic() + 180
        while not (path.exists() and path.read_text().rstrip().endswith("}")):  # written in two steps
            assert time.monotonic() < end, "the scheduler did not start"
            time.sleep(0.1)
        yield f"dask://{json.loads(path.read_text())['address'].removeprefix('tcp://')}", processes
    finally:
        for process in processes[::-1]:
            process.terminate()
        for process in processes:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def test_a_stage_that_kills_its_worker_once_is_run_by_another(lab: Lab, tmp_path: Path) -> None:
    """SIGKILL in the middle of a training: the worker loses that stage, and resumes from what it had saved."""
    lab.behave(
        "marker = inputs.work_dir / 'epoch.txt'\n"
        "    if name == 'train' and inputs.config['seed'] == 0:\n"
        "        if not marker.exists():\n"
        "            marker.write_text('1')\n"
        f"            os.kill(os.getpid(), {int(signal.SIGKILL)})\n"
        "        (inputs.work_dir.parent.parent / 'resumed.txt').write_text(marker.read_text())"
    )
    with dask_processes(lab, 1) as (scheduler, _):
        run = go(lab, scheduler)
    assert run.exit_code == 0
    assert run.computed == 29
    assert (lab.store / "resumed.txt").read_text() == "1"
    started = lab.started()
    assert started.count("train") == 3  # two, and one of them again
    assert len(started) == 30
    lab.behave("pass")
    assert table(run) == table(go(lab, "processes", store=lab.root / "pool"))


def test_a_worker_that_cannot_import_expunge(lab: Lab, tmp_path: Path) -> None:
    """It would end when it reads the first task, and the plan would wait for another one without end."""
    package = tmp_path / "broken" / "expunge"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ModuleNotFoundError('No module named expunge')")
    message = r"the worker at tcp://.* cannot import expunge \(ModuleNotFoundError"
    with dask_processes(lab, 1, first=str(package.parent)) as (scheduler, _), pytest.raises(EngineError, match=message):
        go(lab, scheduler)
    assert lab.started() == []


# ---- Ray


def test_ray_gives_the_table_of_the_pool(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(lab.root), *sys.path]))
    lab.behave("if name == 'forget' and inputs.config['method']['name'] == 'GA': raise ValueError('it diverged')")
    run = go(lab, "ray", workers=2)
    failed = [cell["message"] for cell in run.results["cells"] if cell["state"] == "failed"]
    assert len(failed) == 4
    assert all("it diverged" in message for message in failed)
    lab.behave("pass")
    lab.plan.write_text(lab.plan.read_text() + "resources: {train: {gpu: 1}}\n")
    with pytest.raises(EngineError, match="needs gpu: 1, and no worker has that"):
        go(lab, "ray", workers=1, store=lab.root / "other")
