"""Run a plan: every stage once, in order, resumable, in one or more processes that share a store.

Each process takes the first stage whose inputs are finished and which no other process has locked. Starting a plan
twice at the same time is therefore equivalent to two workers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from expunge.core.errors import ConfigError, Interrupted
from expunge.core.files import PathLike
from expunge.core.reading.file_names import check_format
from expunge.core.show import Summary, plural, repr_text, shorten_names
from expunge.experiments.config.plan import Plan
from expunge.experiments.config.registry_checks import check_plan
from expunge.experiments.forecast.history import Estimate
from expunge.experiments.results.files import read_results, write_results
from expunge.experiments.scheduler.collect import collect, discard_damaged
from expunge.experiments.stages.registry import load_stage_table
from expunge.experiments.store.environment import check_platform
from expunge.experiments.store.shared import open_store
from expunge.experiments.store.store import Store

from .engines.choose import PROCESSES, open_engine
from .engines.driver import run_on_engine
from .forecast import Forecast
from .loop import run_pending_stages
from .parts import select_cells
from .pool import run_in_workers
from .progress import NullReporter, Reporter
from .status import PlanState, entry_or_none, find_running, make_forecaster

#: Hint of an interrupted run.
RESUME_HINT = "completed stages are cached; run the same command again to resume"


@dataclasses.dataclass(frozen=True)
class PlanRun:
    """The result of running a plan.

    Attributes:
        computed: number of stages computed during this run; the others were in the store.
        total: number of stages of the plan.
        failures: label and message of stages that failed; stages that need them were not run.
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
        """0, or 1 if a stage failed."""
        return 1 if self.failures else 0

    def _summarise(self) -> Summary:
        facts = {
            "failed": lambda: shorten_names(label for label, _ in self.failures),
            "results": lambda: str(self.path),
        }
        return Summary(self._describe, facts, lines=True)

    def _describe(self) -> str:
        return f"{plural(self.total, 'stage')}, {self.computed:,} computed in this run, {len(self.failures):,} failed"

    __repr__ = repr_text


def run_plan(
    plan: Plan,
    *,
    store: PathLike,
    workers: int = 1,
    scheduler: str = "processes",
    results: PathLike | None = None,
    reporter: Reporter | None = None,
    stages: Mapping[str, str] | None = None,
    only: Mapping[str, Sequence[str]] | None = None,
) -> PlanRun:
    """Run the stages of a plan that are not in the store yet, then write the result file.

    Args:
        plan: see `load_plan`.
        store: directory of finished stages, or a URL (docs/engines.md); several runs may share it at the same time.
        workers: number of processes; the cores are divided among them. With one, stages run in this process.
        scheduler: `processes`, or an engine (docs/engines.md): `dask` or `ray` with `workers` processes on this
            machine; `dask://HOST:PORT` or `ray://HOST:PORT`, whose workers are started elsewhere.
        results: the result file; default: in the directory of the plan.
        reporter: receives the progress, for example a `PlanBar`.
        stages: stages that take the place of built-in ones: name to registered name or `package.module:function`; by
            giving a reference, the caller agrees to run that code. Names in cells are then not checked beforehand.
        only: run only the cells with these labels (axis to labels), and their references. Other cells that are not in
            the store are taken from the result file, if it is of the same plan: a long plan can run in parts.

    Returns:
        The results, the number of computed stages, and the failures; a failed stage does not stop the others.

    Raises:
        ConfigError, MethodError, ModelError: a name or an option that a registry does not know; nothing was run.
        FileError: `only` is given, and the result file that is there cannot be read.
        Interrupted: Ctrl-C or SIGTERM; completed stages are cached.
        ConfigError: the scheduler or the store has an unknown scheme, or its library is not installed.
        FileError: the disk is full, or the store cannot be reached or written.
        ExpungeError: all workers ended although stages were left; the scheduler does not answer; a worker has other
            code or versions.

    >>> from pathlib import Path
    >>> from expunge.experiments import load_plan, run_plan
    >>> _ = Path("plan.yaml").write_text('''
    ... name: small
    ... base:
    ...   data: {source: digits}
    ...   split: {limit: 100}
    ...   model: {name: mlp, options: {widths: [4]}}
    ...   training: {recipe: one-cycle, epochs: 1}
    ...   forget: {by: random, count: 5}
    ...   runtime: {device: cpu}
    ... grid: {method: [{name: Retrain}]}
    ... ''')
    >>> run = run_plan(load_plan("plan.yaml"), store="cache")
    >>> run.computed, run.total, run.path.name
    (4, 4, 'plan.results.json')
    >>> run_plan(load_plan("plan.yaml"), store="cache").computed  # all stages are cached
    0
    """
    check_platform()
    if results is not None:
        check_format(results, "JSON")
    reporter, stages = reporter or NullReporter(), dict(stages or {})
    engine = open_engine(scheduler, workers, reporter)
    path = Path(results) if results is not None else plan.results_path
    earlier = _read_earlier(plan, path, reporter) if only else None
    state = PlanState(select_cells(plan, only or {}), open_store(store), load_stage_table(stages))
    _check_store(state.store, scheduler, workers)
    started = time.time()
    total = len(state.graph.nodes)
    damaged = discard_damaged(state)
    for node, damage in damaged if engine is not None else ():  # otherwise what computes it again says so
        reporter.log(f"{node.title}: its stored result was damaged ({damage}); it is computed again")
    before = sum(entry_or_none(state, node) is not None for node in state.graph.nodes.values())
    if before < total and not stages:
        for note in check_plan(state.plan):
            reporter.log(note)
    try:
        with sigterm_as_interrupt():
            if before < total:
                if engine is not None:
                    failures = run_on_engine(state, reporter, engine, stages)
                elif workers <= 1:
                    failures = run_pending_stages(state, reporter, since=started)
                else:
                    failures = run_in_workers(state, reporter, workers, stages, started)
            else:
                failures = {}
    except (KeyboardInterrupt, Interrupted) as error:
        done = sum(entry_or_none(state, node) is not None for node in state.graph.nodes.values())
        raise Interrupted(
            f"stopped with {done} of {total} stages finished", where=plan.name, hint=RESUME_HINT
        ) from error
    state.save_facts()
    body = collect(PlanState(plan, state.store, load_stage_table(stages)) if only else state, failures, earlier)
    write_results(path, body)
    computed = sum(entry_or_none(state, node) is not None for node in state.graph.nodes.values())
    shown = tuple((state.graph.nodes[i].title, message) for i, message in failures.items())
    return PlanRun(computed - before, total, shown, body, path)


def _read_earlier(plan: Plan, path: Path, reporter: Reporter) -> dict[str, Any] | None:
    """The results that are there, if they are of this plan."""
    if not path.exists():
        return None
    earlier = read_results(path)
    if earlier["plan"]["hash"] == plan.hash:
        return earlier
    reporter.log(f"{path}: of another version of the plan ({earlier['plan']['hash'][:12]}); its cells are not kept")
    return None


def _check_store(store: Store, scheduler: str, workers: int) -> None:
    """Refuse a store in the memory of this process for stages that run in other processes."""
    if store.address.startswith("memory://") and (scheduler != PROCESSES or workers > 1):
        raise ConfigError(
            "a store in memory is seen by one process only", where=f"store {store.address}",
            hint="use --scheduler processes with one worker, or a folder, or another URL",
        )  # fmt: skip


def collect_results(plan: Plan, *, store: PathLike, stages: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Collect the results of the finished cells, without running anything. Does not import torch.

    Args:
        plan: see `load_plan`.
        store: directory of finished stages.
        stages: stages that take the place of built-in ones: name to registered name or `package.module:function`.

    Returns:
        The results (docs/formats/results.md); a cell that is not finished has the state `missing`.

    >>> from pathlib import Path
    >>> from expunge.experiments import collect_results, load_plan
    >>> _ = Path("plan.yaml").write_text('''
    ... name: small
    ... base:
    ...   {data: {source: digits}, model: {name: mlp}, training: {recipe: one-cycle}, forget: {by: class, index: 3}}
    ... grid: {method: [{name: Retrain}, {name: FT}]}
    ... ''')
    >>> results = collect_results(load_plan("plan.yaml"), store="cache")
    >>> [(cell["method"], cell["state"]) for cell in results["cells"]]
    [('Retrain', 'missing'), ('FT', 'missing')]
    """
    return collect(PlanState(plan, open_store(store), load_stage_table(stages)), {})


def forecast_plan(
    plan: Plan,
    *,
    store: PathLike,
    workers: int = 1,
    probes: Mapping[str, Estimate] | None = None,
    stages: Mapping[str, str] | None = None,
) -> Forecast:
    """Forecast time and memory of the stages of a plan that are not in a store. Does not import torch.

    The numbers rest on finished stages of the store, of this and of other plans; each line says on how many and which
    (docs/plans.md, "Forecast").

    Args:
        plan: see `load_plan`.
        store: directory of finished stages; it need not exist.
        workers: number of processes that share the stages.
        probes: estimates for stages of which none similar has finished (`expunge.workflow.probe_plan`).
        stages: stages that take the place of built-in ones: name to registered name or `package.module:function`.

    Raises:
        ExpungeError: the graph of the plan cannot be made: see `build_graph`.

    >>> from pathlib import Path
    >>> from expunge.experiments import forecast_plan, load_plan, run_plan
    >>> text = '''
    ... name: small
    ... base:
    ...   {data: {source: digits}, split: {limit: 100}, model: {name: mlp}, training: {recipe: one-cycle, epochs: 1},
    ...    forget: {by: class, index: 3}, runtime: {device: cpu}}
    ... grid: {method: [{name: Retrain}], seed: [0]}
    ... '''
    >>> _ = Path("plan.yaml").write_text(text)
    >>> forecast_plan(load_plan("plan.yaml"), store="finished").seconds is None  # nothing is known yet
    True
    >>> _ = run_plan(load_plan("plan.yaml"), store="finished")
    >>> _ = Path("plan.yaml").write_text(text.replace("[0]", "[0, 1]"))
    >>> for row in forecast_plan(load_plan("plan.yaml"), store="finished").stages:
    ...     print(row.count, row.stages, row.basis)
    1 train of mlp on digits from 1 finished stage like it
    1 forget of Retrain with mlp on digits from 1 finished stage like it
    1 score of Retrain with mlp on digits from 1 finished stage like it
    """
    state = PlanState(plan, open_store(store), load_stage_table(stages))
    return make_forecaster(state, workers, probes).forecast(find_running(state))


def clean_store(plans: Iterable[Plan], *, store: PathLike, stages: Mapping[str, str] | None = None) -> int:
    """Remove the entries and checkpoints of a store that none of these plans needs.

    Args:
        plans: the plans whose stages are kept.
        store: directory of finished stages.
        stages: stages that take the place of built-in ones: name to registered name or `package.module:function`.

    Returns:
        The number of bytes freed.

    >>> from pathlib import Path
    >>> from expunge.experiments import clean_store
    >>> _ = Path("cache/entries/train/0123").mkdir(parents=True)
    >>> _ = Path("cache/entries/train/0123/model.safetensors").write_bytes(bytes(1000))
    >>> clean_store([], store="cache")
    1000
    """
    opened = open_store(store)
    keep = set()
    for plan in plans:
        state = PlanState(plan, opened, load_stage_table(stages))
        for node in state.graph.nodes.values():
            ingredients = state.ingredients(node)
            if ingredients is not None:
                keep.add(ingredients.key)
    return opened.clean(keep)


@contextlib.contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Handle SIGTERM like Ctrl-C inside the block (only in the main thread: others cannot set signal handlers)."""
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
