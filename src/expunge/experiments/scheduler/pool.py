"""Start, watch and stop the worker processes of a plan. They communicate with this process only through the store."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from expunge.core.errors import ExpungeError, StoreError
from expunge.core.trust import worker_path
from expunge.experiments.store.environment import count_cores

from .forecast import Forecaster
from .progress import Reporter, format_duration
from .status import PlanState
from .watch import Watcher


def run_in_workers(
    state: PlanState, reporter: Reporter, workers: int, stages: Mapping[str, str], started: float
) -> dict[str, str]:
    """Start worker processes on the same plan and store, and watch the store until they end.

    Returns:
        Node id to the message of the failure.

    Raises:
        StoreError: the store cannot be written.
        ExpungeError: all workers ended although stages were left, for example because memory ran out.
    """
    plan = state.plan
    errors, pipe = os.pipe()
    os.set_blocking(errors, False)
    threads = max(1, count_cores() // workers)
    message = {
        "plan": str(plan.path),
        "overrides": list(plan.overrides),
        "hash": plan.hash,
        "only": {axis: list(labels) for axis, labels in plan.only.items()},
        "store": state.store.address,
        "stages": dict(stages),
        "since": started,
        "threads": threads,
        "errors": pipe,
        "trust": {"packages": plan.trust.packages, "here": plan.trust.here, "command_line": plan.trust.command_line},
    }
    environment = {**os.environ, "PYTHONPATH": worker_path()}
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        environment[variable] = str(threads)
    logs = state.store.root / "logs"
    # -P: do not import a `secrets.py` of the current directory instead of Python's own module.
    command = [sys.executable, "-P", "-m", "expunge.experiments.scheduler.worker", json.dumps(message)]
    processes: list[subprocess.Popen[bytes]] = []
    watcher, forecaster = Watcher(state, started), Forecaster(state.graph, state.store, workers=workers)
    _report(watcher, forecaster, reporter, finished_before=True)
    try:
        for number in range(workers):
            with _open_log(state, logs / f"worker-{number}.log") as log:
                options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stderr": log, "pass_fds": (pipe,)}
                processes.append(subprocess.Popen(command, env=environment, **options))
        _watch(watcher, forecaster, reporter, processes)
    finally:
        _stop(processes)
        os.close(pipe)
        reason = _read_error(errors)
    failed, pending = watcher.failed, watcher.pending
    if pending and not failed and reason is not None:
        raise reason
    if pending and not failed:
        codes = ", ".join(str(process.returncode) for process in processes)
        raise ExpungeError(
            f"the workers ended (exit codes {codes}) with {len(pending)} stages left",
            where=logs,
            hint="see the logs there; exit code -9 usually means that memory ran out: use fewer workers",
        )
    return failed


def _open_log(state: PlanState, path: Path) -> IO[bytes]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return open(path, "ab")
    except OSError as error:
        raise StoreError(
            f"the store cannot be written ({error.strerror or error})", where=state.store.address
        ) from error


def _read_error(errors: int) -> ExpungeError | None:
    """The first error that a worker has reported (`worker.report_error`); closes the pipe."""
    with open(errors, "rb", buffering=0) as file:
        content = file.read(2**16) or b""  # None: nothing was written, and a process still has the other end
    try:
        return ExpungeError(**json.loads(content.partition(b"\n")[0]))
    except ValueError:
        return None


def _watch(
    watcher: Watcher, forecaster: Forecaster, reporter: Reporter, processes: list[subprocess.Popen[bytes]]
) -> None:
    """Report what finishes or fails until all workers have ended."""
    for (stage, key), damage in watcher.state.store.damaged.items():
        reporter.log(f"{stage} {key[:8]}: its stored result was damaged ({damage}); it is computed again")
    while True:
        running = [process for process in processes if process.poll() is None]
        _report(watcher, forecaster, reporter)
        if not running:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            running[0].wait(timeout=1.0)


def _report(watcher: Watcher, forecaster: Forecaster, reporter: Reporter, *, finished_before: bool = False) -> None:
    """Report what has finished or failed since the last look; what was finished before the run only in numbers."""
    found = watcher.look()
    for node, entry, _ in found:
        if entry is None:
            forecaster.fail(node)
        else:
            forecaster.finish(node, entry)
    reporter.update(forecaster.progress())
    for node, entry, message in found:
        if entry is None:
            reporter.log(f"{node.title}: FAILED: {message}")
        elif not finished_before:
            reporter.log(f"{node.title}: {format_duration(entry.seconds)}")


def _stop(processes: list[subprocess.Popen[bytes]], timeout: float = 60.0) -> None:
    """Interrupt the workers as Ctrl-C does (they save a checkpoint), and kill those that do not end in time."""
    running = [process for process in processes if process.poll() is None]
    for process in running:
        process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + timeout
    for process in running:
        try:
            process.wait(timeout=max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
