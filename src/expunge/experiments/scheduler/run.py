"""Running a plan: every stage once, in order, resumable, by one or more processes that share a store.

Workers know nothing of each other: each takes the first stage whose inputs are finished and whose lock is free. So a
plan started twice, side by side, is the same as a plan with two workers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from expunge.core.errors import Interrupted
from expunge.core.files import PathLike
from expunge.experiments.config.plan import Plan
from expunge.experiments.config.registry_checks import check_plan
from expunge.experiments.results.files import write_results
from expunge.experiments.scheduler.collect import collect
from expunge.experiments.stages.registry import stage_table
from expunge.experiments.store.store import Store, check_platform

from .loop import label_of, work
from .pool import with_workers
from .progress import Reporter, Silent
from .status import PlanState, PlanStatus, safe_entry, status_of

DEFAULT_STAGES = "expunge.experiments.stages.registry:STAGES"
_AGAIN = "what was finished is kept; the same command goes on from there"


@dataclasses.dataclass(frozen=True)
class PlanRun:
    """What a run of a plan came to.

    Attributes:
        computed: stages that this run computed; the others were in the store, or other processes computed them.
        total: all stages of the plan.
        failures: label and message of stages that failed; what needs them was left out.
        results: the results (docs/formats/results.md).
        path: the result file.
    """

    computed: int
    total: int
    failures: tuple[tuple[str, str], ...]
    results: dict[str, Any]
    path: Path

    @property
    def exit_code(self) -> int:
        """0, or 1 where something failed."""
        return 1 if self.failures else 0


def run_plan(
    plan: Plan,
    *,
    store: PathLike,
    workers: int = 1,
    results: PathLike | None = None,
    reporter: Reporter | None = None,
    stages: str = DEFAULT_STAGES,
) -> PlanRun:
    """Run what is not in the store yet, then write the result file.

    Args:
        plan: see `load_plan`.
        store: directory of finished stages; several runs may share it at the same time.
        workers: processes; each gets its share of the cores. With one, stages run in this process.
        results: the result file; beside the plan by default.
        reporter: told of progress.
        stages: `package.module:attribute` of the table of stages.

    Raises:
        ConfigError, MethodError, ModelError: a name or an option that a registry does not know; nothing was run.
        Interrupted: Ctrl-C (or SIGTERM); what was finished is kept.
        FileError: the disk is full, or the store cannot be written.
        ExpungeError: every worker ended before its work did.
    """
    check_platform()
    reporter = reporter or Silent()
    place = Store(store)
    state = PlanState(plan, place, stage_table(stages))
    started = time.time()
    total = len(state.graph.nodes)
    before = sum(safe_entry(state, node) is not None for node in state.graph.nodes.values())
    if before < total and stages == DEFAULT_STAGES:
        check_plan(plan)
    try:
        with terminable():
            if before < total:
                if workers <= 1:
                    failures = work(state, reporter, since=started)
                else:
                    failures = with_workers(state, reporter, workers, stages, started)
            else:
                failures = {}
    except (KeyboardInterrupt, Interrupted) as error:
        done = sum(safe_entry(state, node) is not None for node in state.graph.nodes.values())
        raise Interrupted(f"stopped with {done} of {total} stages finished", where=plan.name, hint=_AGAIN) from error
    body = collect(state, failures)
    path = Path(results) if results is not None else plan.results_path
    write_results(path, body)
    computed = sum(safe_entry(state, node) is not None for node in state.graph.nodes.values())
    shown = tuple((label_of(state.graph.nodes[i]), message) for i, message in failures.items())
    return PlanRun(computed - before, total, shown, body, path)


def plan_status(plan: Plan, *, store: PathLike, stages: str = DEFAULT_STAGES) -> PlanStatus:
    """Where a plan stands in a store. Does not import torch."""
    return status_of(PlanState(plan, Store(store), stage_table(stages)))


def collect_results(plan: Plan, *, store: PathLike, stages: str = DEFAULT_STAGES) -> dict[str, Any]:
    """The results of what is finished (docs/formats/results.md), without running anything. Does not import torch."""
    return collect(PlanState(plan, Store(store), stage_table(stages)), {})


def explain_plan(plan: Plan, *, store: PathLike, stages: str = DEFAULT_STAGES) -> list[str]:
    """For every stage that is not in the store and whose inputs are: why it would run."""
    state = PlanState(plan, Store(store), stage_table(stages))
    lines = []
    for node in state.graph.nodes.values():
        if state.entry(node) is None:
            ingredients = state.ingredients(node)
            if ingredients is not None:
                lines.append(f"{label_of(node)}: {'; '.join(state.store.explain(ingredients))}")
    return lines


def sweep_store(plans: Iterable[Plan], *, store: PathLike, stages: str = DEFAULT_STAGES) -> int:
    """Remove from the store what none of these plans needs; returns the bytes freed."""
    place = Store(store)
    keep = set()
    for plan in plans:
        state = PlanState(plan, place, stage_table(stages))
        for node in state.graph.nodes.values():
            ingredients = state.ingredients(node)
            if ingredients is not None:
                keep.add(ingredients.key)
    return place.sweep(keep)


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Inside the block SIGTERM is what Ctrl-C is (in the main thread; elsewhere signals cannot be set)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before: Callable[[int, FrameType | None], Any] | int | None = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
