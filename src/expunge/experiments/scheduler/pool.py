"""Worker processes of a plan: starting, watching and stopping them. They and this process meet only in the store."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

from expunge.core.errors import ExpungeError
from expunge.core.trust import worker_path
from expunge.experiments.store.environment import cores

from .graph import Node
from .loop import label_of, tally
from .progress import Reporter, duration
from .status import PlanState, safe_entry


def with_workers(state: PlanState, reporter: Reporter, workers: int, stages: str, started: float) -> dict[str, str]:
    """Start worker processes on the same plan and store, and watch the store until they are done."""
    plan = state.plan
    threads = max(1, cores() // workers)
    message = {
        "plan": str(plan.path),
        "overrides": list(plan.overrides),
        "hash": plan.hash,
        "store": str(state.store.root),
        "stages": stages,
        "since": started,
        "threads": threads,
        "trust": {"packages": plan.trust.packages, "here": plan.trust.here},
    }
    environment = {**os.environ, "PYTHONPATH": worker_path()}
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        environment[variable] = str(threads)
    logs = state.store.root / "logs"
    # -P: a `secrets.py` in the current directory is not imported in the place of Python's own.
    command = [sys.executable, "-P", "-m", "expunge.experiments.scheduler.worker", json.dumps(message)]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        logs.mkdir(parents=True, exist_ok=True)
        for number in range(workers):
            with open(logs / f"worker-{number}.log", "ab") as log:
                processes.append(subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stderr=log))
        _watch(state, reporter, processes, workers)
    finally:
        _stop(processes)
    failed, pending = _look(state, started)
    if pending and not failed:
        codes = ", ".join(str(process.returncode) for process in processes)
        raise ExpungeError(
            f"the workers ended (exit codes {codes}) with {len(pending)} stages left",
            where=logs,
            hint="see the logs there; -9 usually means that memory ran out: use fewer workers",
        )
    return failed


def _look(state: PlanState, started: float) -> tuple[dict[str, str], list[Node]]:
    """What failed since `started` (with what needs it), and what is left."""
    failed: dict[str, str] = {}
    pending = []
    for node in state.graph.nodes.values():
        blocked = next((failed[i] for i in node.inputs.values() if i in failed), None)
        if blocked is not None:
            failed[node.id] = blocked
            continue
        try:
            if state.entry(node) is not None:
                continue
            ingredients = state.ingredients(node)
        except ExpungeError as error:
            failed[node.id] = str(error)
            continue
        message = None if ingredients is None else state.store.failure(ingredients.key, started)
        if message is not None:
            failed[node.id] = message
        else:
            pending.append(node)
    return failed, pending


def _watch(state: PlanState, reporter: Reporter, processes: list[subprocess.Popen[bytes]], workers: int) -> None:
    started = time.time()
    told = {node.id for node in state.graph.nodes.values() if safe_entry(state, node) is not None}
    while True:
        running = [process for process in processes if process.poll() is None]
        failed, pending = _look(state, started)
        reporter.tally(tally(state, pending, failed, workers))
        for node in state.graph.nodes.values():
            entry = safe_entry(state, node)
            if entry is not None and node.id not in told:
                told.add(node.id)
                reporter.event(f"{label_of(node)}: {duration(entry.seconds)}")
            elif node.id in failed and node.id not in told:
                told.add(node.id)
                reporter.event(f"{label_of(node)}: FAILED: {failed[node.id]}")
        if not running:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            running[0].wait(timeout=1.0)


def _stop(processes: list[subprocess.Popen[bytes]], patience: float = 60.0) -> None:
    """Ask workers to stop as Ctrl-C does (they keep a checkpoint), and end those that do not."""
    alive = [process for process in processes if process.poll() is None]
    for process in alive:
        process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + patience
    for process in alive:
        try:
            process.wait(timeout=max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
