"""Running plans: nothing is computed twice, runs resume, processes share work, failures are isolated."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from laboratory import Lab

from expunge.core.errors import Interrupted
from expunge.experiments import (
    clean_store,
    collect_results,
    explain_plan,
    get_plan_status,
    load_plan,
    read_results,
    render_table,
    run_plan,
)

#: Stages of the tiny plan: 1 data, 2 train, 2 prune, 12 forget, 12 score.
STAGES = {"data": 1, "train": 2, "prune": 2, "forget": 12, "score": 12}
RUN = """
import json, sys
from expunge.experiments import load_plan, run_plan
plan, store, stages = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
run = run_plan(load_plan(plan), store=store, stages=stages, workers=int(sys.argv[4]), results=sys.argv[5])
print(run.computed)
"""


def go(lab: Lab, **options: object):
    return run_plan(load_plan(lab.plan), store=lab.store, stages=lab.stages, **options)  # type: ignore[arg-type]


def start(lab: Lab, *, workers: int = 1, results: str = "r.json", in_background: bool = False) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(lab.root), *sys.path])}
    command = [sys.executable, "-c", RUN, str(lab.plan), str(lab.store), json.dumps(lab.stages), str(workers)]
    return subprocess.Popen(
        [*command, str(lab.root / results)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN if in_background else signal.SIG_DFL),
    )


def wait_until(condition, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def test_a_plan_runs_every_stage_once(lab: Lab) -> None:
    run = go(lab)
    assert run.exit_code == 0
    assert run.computed == run.total == sum(STAGES.values())
    assert {name: lab.started().count(name) for name in STAGES} == STAGES
    again = go(lab)
    assert again.computed == 0
    assert len(lab.started()) == run.total
    assert again.results == run.results
    assert run.results.items() <= read_results(lab.plan.with_name("tiny.results.json")).items()
    assert render_table(again.results) == render_table(run.results)


def test_two_stores_give_the_same_scores(lab: Lab) -> None:
    first = go(lab)
    second = run_plan(load_plan(lab.plan), store=lab.root / "other", stages=lab.stages)
    assert [c["scores"] for c in first.results["cells"]] == [c["scores"] for c in second.results["cells"]]


def test_a_killed_run_is_resumed(lab: Lab) -> None:
    lab.behave("time.sleep(0.1)")
    process = start(lab)
    wait_until(lambda: len(lab.started()) >= 4)
    process.kill()
    process.communicate()
    status = get_plan_status(load_plan(lab.plan), store=lab.store, stages=lab.stages)
    finished = sum(counts["done"] for counts in status.stages.values())
    assert 0 < finished < sum(STAGES.values())
    assert not status.finished
    assert sum(counts["running"] for counts in status.stages.values()) == 0  # the lock was released with the process
    lab.behave("pass")  # changes the code hash of every stage: restore it
    lab.behave("time.sleep(0.1)")
    run = go(lab)
    assert run.computed == sum(STAGES.values()) - finished
    assert get_plan_status(load_plan(lab.plan), store=lab.store, stages=lab.stages).finished
    assert not list(lab.store.glob("entries/*/.*"))
    assert not list(lab.store.glob("work/*"))


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_explains_how_to_resume(lab: Lab, workers: int) -> None:
    lab.behave("time.sleep(0.1)")
    process = start(lab, workers=workers)
    wait_until(lambda: len(lab.started()) >= 4)
    process.send_signal(signal.SIGINT)
    _, text = process.communicate(timeout=20)
    assert process.returncode != 0
    assert "stages finished" in text
    assert "run the same command again to resume" in text
    started = len(lab.started())
    time.sleep(0.5)
    assert len(lab.started()) == started  # no worker is left running
    assert not (lab.root / "r.json").exists()
    assert go(lab).exit_code == 0


def test_a_run_in_the_background_stops_its_workers(lab: Lab) -> None:
    """A shell's background inputs ignores SIGINT, and its workers inherit that; they must still stop when asked."""
    lab.behave("time.sleep(0.2)")
    process = start(lab, workers=2, in_background=True)
    wait_until(lambda: len(lab.started()) >= 4)
    process.send_signal(signal.SIGTERM)
    _, text = process.communicate(timeout=20)
    assert "run the same command again to resume" in text
    started = len(lab.started())
    time.sleep(0.5)
    assert len(lab.started()) == started < sum(STAGES.values())


def test_interrupted_by_a_stage(lab: Lab) -> None:
    lab.behave("if name == 'forget': raise KeyboardInterrupt")
    with pytest.raises(Interrupted, match="stopped with 2 of 29"):
        go(lab)


def test_checkpoints_are_kept_after_an_interruption(lab: Lab) -> None:
    lab.behave(
        "path = inputs.work_dir / 'epoch.txt'\n"
        "    done = int(path.read_text()) if path.exists() else 0\n"
        "    path.write_text(str(done + 1))\n"
        "    if name == 'train' and done < 1: raise KeyboardInterrupt"
    )
    with pytest.raises(Interrupted):
        go(lab)
    with pytest.raises(Interrupted):
        go(lab)  # the first training resumes from its checkpoint, the second is interrupted
    assert go(lab).exit_code == 0
    assert lab.started().count("train") == 4


def test_two_processes_compute_nothing_twice(lab: Lab) -> None:
    lab.behave("time.sleep(0.05)")
    processes = [start(lab, results=f"r{i}.json") for i in range(2)]
    for process in processes:
        _, text = process.communicate(timeout=60)
        assert process.returncode == 0, text
    assert {name: lab.started().count(name) for name in STAGES} == STAGES
    pids = {line.split()[2] for line in lab.file("log.txt").read_text().splitlines()}
    assert len(pids) == 2  # both worked
    assert read_results(lab.root / "r0.json") == read_results(lab.root / "r1.json")


def test_workers_share_the_plan(lab: Lab) -> None:
    lab.behave("time.sleep(0.05)")
    run = go(lab, workers=2)
    assert run.exit_code == 0
    assert {name: lab.started().count(name) for name in STAGES} == STAGES
    assert run.results["made"]["threads"] == [max(1, len(os.sched_getaffinity(0)) // 2)]


def test_other_stages_run_after_a_failure(lab: Lab) -> None:
    lab.behave("if name == 'forget' and inputs.config['method']['name'] == 'GA': raise ValueError('it diverged')")
    run = go(lab)
    assert run.exit_code == 1
    failed = [cell for cell in run.results["cells"] if cell["state"] == "failed"]
    assert len(failed) == 4
    assert all(cell["labels"]["method"] == "GA" and "it diverged" in cell["message"] for cell in failed)
    assert sum(cell["state"] == "finished" for cell in run.results["cells"]) == 8
    assert "it diverged" in render_table(run.results)
    status = get_plan_status(load_plan(lab.plan), store=lab.store, stages=lab.stages)
    assert len(status.failures) == 4
    assert "it diverged" in status.render()
    record = next(lab.store.glob("failures/*.json")).read_text()
    assert "Traceback" in record
    lab.behave("pass")
    assert go(lab).exit_code == 0
    assert get_plan_status(load_plan(lab.plan), store=lab.store, stages=lab.stages).finished


def test_an_os_error_of_the_users_code_is_not_one_of_the_store(lab: Lab) -> None:
    """A model or a dataset that cannot read its own file, in the middle of a stage that the store writes."""
    lab.behave("if name == 'train': raise OSError(5, 'broken JPEG', '/data/cat.jpg')")
    run = go(lab)
    message = run.results["cells"][0]["message"]
    assert "its code raised OSError: [Errno 5] broken JPEG: '/data/cat.jpg'" in message
    assert "cannot be written" not in message
    assert str(lab.store) not in message
    lab.behave("pass")
    assert go(lab).exit_code == 0


def test_failure_of_the_reference_fails_the_comparisons(lab: Lab) -> None:
    lab.behave("if name == 'forget' and inputs.config['method']['name'] == 'Retrain': raise ValueError('no')")
    run = go(lab)
    assert all(cell["state"] == "failed" for cell in run.results["cells"])
    assert lab.started().count("forget") == 12  # the others were still unlearned


def test_failures_of_workers_are_reported(lab: Lab) -> None:
    lab.behave("if name == 'prune': raise ValueError('no')")
    run = go(lab, workers=2)
    assert run.exit_code == 1
    assert sum(cell["state"] == "failed" for cell in run.results["cells"]) == 6


def test_collect_without_running(lab: Lab) -> None:
    body = collect_results(load_plan(lab.plan), store=lab.store, stages=lab.stages)
    assert {cell["state"] for cell in body["cells"]} == {"missing"}
    assert "Nothing has been run." in render_table(body)


def test_explain_and_clean(lab: Lab) -> None:
    go(lab)
    assert explain_plan(load_plan(lab.plan), store=lab.store, stages=lab.stages) == []
    lab.plan.write_text(lab.plan.read_text().replace("epochs: 2", "epochs: 3"))
    changed = load_plan(lab.plan)
    lines = explain_plan(changed, store=lab.store, stages=lab.stages)
    assert len(lines) == 2
    assert all("configuration: training.epochs: 2 -> 3" in line for line in lines)
    freed = clean_store([changed], store=lab.store, stages=lab.stages)
    assert freed > 0
    assert len(list(lab.store.glob("entries/*/*"))) == STAGES["data"]


def test_status_and_finished_plans_do_not_import_torch(lab: Lab) -> None:
    go(lab)
    code = (
        "import json, sys; from expunge.experiments import *\n"
        "plan, store, stages = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])\n"
        "p = load_plan(plan); get_plan_status(p, store=store, stages=stages).render()\n"
        "run = run_plan(p, store=store, stages=stages); render_table(run.results, 'markdown')\n"
        "assert run.computed == 0; sys.exit('torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(lab.root), *sys.path])}
    command = [sys.executable, "-c", code, str(lab.plan), str(lab.store), json.dumps(lab.stages)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_store_that_cannot_be_written(lab: Lab) -> None:
    from expunge.core.errors import FileError

    Path(lab.store).write_text("a file, not a directory")
    with pytest.raises(FileError, match="cannot be written"):
        go(lab)
