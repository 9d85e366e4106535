"""The loop of one process: take the first stage that is ready and whose lock is free, until none is left."""

from __future__ import annotations

import dataclasses
import errno
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from expunge.core.errors import ExpungeError, Interrupted
from expunge.core.trust import trusting
from expunge.experiments.stages.registry import Job
from expunge.experiments.store.environment import cores
from expunge.experiments.store.store import Entry, Ingredients, message_of

from .graph import Node
from .progress import Reporter, Tally, duration, estimate_left
from .status import PlanState, kind_of


def work(
    state: PlanState, reporter: Reporter, *, since: float, threads: int | None = None, keep_going: bool = True
) -> dict[str, str]:
    """Compute stages until none is left; returns what failed, by node id.

    Stages that another process works on are left to it; while nothing else can be done this waits for it. Without
    `keep_going` the first error of this process is raised as it is, and the other stages are left.
    """
    pending = list(state.graph.nodes.values())
    failed: dict[str, str] = {}
    while pending:
        moved = False
        for node in list(pending):
            blocked = next((failed[i] for i in node.inputs.values() if i in failed), None)
            found = _Failed(blocked) if blocked else _attempt(state, node, reporter, since, threads, keep_going)
            if found is None:
                continue
            if isinstance(found, _Failed):
                failed[node.id] = found.message
            pending.remove(node)
            moved = True
            reporter.tally(tally(state, pending, failed))
            if found.news:
                reporter.event(f"{label_of(node)}: {found.news}")
        if not moved:
            time.sleep(0.2)
    return failed


@dataclasses.dataclass(frozen=True)
class _Done:
    """The stage is finished; `news` says how long it took if this process ran it."""

    news: str = ""


@dataclasses.dataclass(frozen=True)
class _Failed:
    """The stage failed, here or elsewhere."""

    message: str
    news: str = ""


def _attempt(
    state: PlanState, node: Node, reporter: Reporter, since: float, threads: int | None, keep_going: bool
) -> _Done | _Failed | None:
    """Run the stage if it can be run and nobody else does; None: not now."""
    try:
        if state.entry(node) is not None:
            return _Done()
        ingredients = state.ingredients(node)
    except ExpungeError as error:
        if not keep_going:
            raise
        return _Failed(str(error), news=f"FAILED: {error}")
    if ingredients is None:
        return None
    with state.store.lock(ingredients.key) as mine:
        if not mine:
            return None
        if state.entry(node) is not None:
            return _Done()
        elsewhere = state.store.failure(ingredients.key, since)
        if elsewhere is not None:
            return _Failed(elsewhere)
        try:
            entry = _compute(state, node, ingredients, reporter, threads)
        except (KeyboardInterrupt, Interrupted):
            raise
        except Exception as error:
            if _disk_full(error):
                raise
            own = isinstance(error, ExpungeError)
            message = message_of(error)
            trace = None if own else traceback.format_exc()
            state.store.record_failure(ingredients.key, label_of(node), message, trace)
            if not keep_going:
                raise
            return _Failed(message, news=f"FAILED: {message}")
    return _Done(news=duration(entry.seconds))


def _compute(state: PlanState, node: Node, ingredients: Ingredients, reporter: Reporter, threads: int | None) -> Entry:
    stage = state.stages[node.stage]
    below = {name: state.entry(state.graph.nodes[i]) for name, i in node.inputs.items()}
    inputs = {name: entry for name, entry in below.items() if entry is not None}

    def run(out: Path, checkpoints: Path) -> str:
        job = Job(
            config=node.config,
            inputs={name: entry.path for name, entry in inputs.items()},
            outputs={name: entry.output for name, entry in inputs.items()},
            data_dir=node.data_dir,
            work=checkpoints,
            progress=reporter.step,
        )
        with trusting(state.plan.trust):
            return stage.run(job, out)

    def used() -> int:
        torch = sys.modules.get("torch")
        return int(torch.get_num_threads()) if torch is not None else threads or cores()

    return state.store.compute(ingredients, run, label=label_of(node), threads=used)


def _disk_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__
    return False


def tally(state: PlanState, pending: Iterable[Node], failed: dict[str, str], workers: int = 1) -> Tally:
    """Count what is done and estimate what is left."""
    pending = list(pending)
    seconds: dict[str, list[float]] = {}
    waiting = {node.id for node in pending}
    for node in state.graph.nodes.values():
        if node.id not in waiting and node.id not in failed:
            entry = state.entry(node)
            if entry is not None:
                seconds.setdefault(kind_of(node), []).append(entry.seconds)
    total = len(state.graph.nodes)
    left = estimate_left(Counter(map(kind_of, pending)), seconds, workers)
    return Tally(total - len(pending) - len(failed), len(failed), total, left, sum(map(sum, seconds.values())))


def label_of(node: Node) -> str:
    return f"{node.stage} {node.label}"
