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

from expunge.core.errors import ExpungeError
from expunge.core.trust import worker_path
from expunge.experiments.store.environment import count_cores

from .graph import Node
from .loop import count_stages
from .progress import Reporter, format_duration
from .status import PlanState, entry_or_none


def run_in_workers(
    state: PlanState, reporter: Reporter, workers: int, stages: Mapping[str, str], started: float
) -> dict[str, str]:
    """Start worker processes on the same plan and store, and watch the store until they end.

    Returns:
        Node id to the message of the failure.

    Raises:
        ExpungeError: all workers ended although stages were left, for example because memory ran out.
    """
    plan = state.plan
    threads = max(1, count_cores() // workers)
    message = {
        "plan": str(plan.path),
        "overrides": list(plan.overrides),
        "hash": plan.hash,
        "store": state.store.address,
        "stages": dict(stages),
        "since": started,
        "threads": threads,
        "trust": {"packages": plan.trust.packages, "here": plan.trust.here},
    }
    environment = {**os.environ, "PYTHONPATH": worker_path()}
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        environment[variable] = str(threads)
    logs = state.store.root / "logs"
    # -P: do not import a `secrets.py` of the current directory instead of Python's own module.
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
    failed, pending = _check_stages(state, started)
    if pending and not failed:
        codes = ", ".join(str(process.returncode) for process in processes)
        raise ExpungeError(
            f"the workers ended (exit codes {codes}) with {len(pending)} stages left",
            where=logs,
            hint="see the logs there; exit code -9 usually means that memory ran out: use fewer workers",
        )
    return failed


def _check_stages(state: PlanState, started: float) -> tuple[dict[str, str], list[Node]]:
    """Find the stages that failed since `started` (and those that need them), and the stages that are left."""
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
        message = None if ingredients is None else state.store.read_failure(ingredients.key, started)
        if message is not None:
            failed[node.id] = message
        else:
            pending.append(node)
    return failed, pending


def _watch(state: PlanState, reporter: Reporter, processes: list[subprocess.Popen[bytes]], workers: int) -> None:
    started = time.time()
    for (stage, key), damage in state.store.damaged.items():
        reporter.log(f"{stage} {key[:8]}: its stored result was damaged ({damage}); it is computed again")
    reported = {node.id for node in state.graph.nodes.values() if entry_or_none(state, node) is not None}
    while True:
        running = [process for process in processes if process.poll() is None]
        failed, pending = _check_stages(state, started)
        reporter.update(count_stages(state, pending, failed, workers))
        for node in state.graph.nodes.values():
            entry = entry_or_none(state, node)
            if entry is not None and node.id not in reported:
                reported.add(node.id)
                reporter.log(f"{node.title}: {format_duration(entry.seconds)}")
            elif node.id in failed and node.id not in reported:
                reported.add(node.id)
                reporter.log(f"{node.title}: FAILED: {failed[node.id]}")
        if not running:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            running[0].wait(timeout=1.0)


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
