"""The loop of one process: run the first stage that is ready and not locked, until none is left."""

from __future__ import annotations

import dataclasses
import errno
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from expunge.core.errors import ChangedDataError, ExpungeError, FileError, Interrupted
from expunge.core.trust import trusting
from expunge.experiments.stages.registry import StageInputs
from expunge.experiments.store.environment import count_cores
from expunge.experiments.store.store import Entry, Ingredients, error_text

from .graph import Node
from .progress import PlanProgress, Reporter, estimate_left, format_duration
from .status import PlanState, cost_group


def run_pending_stages(
    state: PlanState, reporter: Reporter, *, since: float, threads: int | None = None, keep_going: bool = True
) -> dict[str, str]:
    """Run stages until none is pending.

    A stage that another process is running is left to that process; if no other stage is ready, this one waits.

    Args:
        state: the plan and its store.
        reporter: receives the progress.
        since: start of the run (seconds since 1970); earlier failures of other processes are ignored.
        threads: recorded with the entries if torch is not imported.
        keep_going: run the stages that do not need a failed one; else the first error of this process is raised.

    Returns:
        Node id to the message of the failure, for every stage that failed or needs one that failed.
    """
    pending = list(state.graph.nodes.values())
    failed: dict[str, str] = {}
    while pending:
        progressed = False
        for node in list(pending):
            blocked = next((failed[i] for i in node.inputs.values() if i in failed), None)
            found = _Failed(blocked) if blocked else _attempt(state, node, reporter, since, threads, keep_going)
            if found is None:
                continue
            if isinstance(found, _Failed):
                failed[node.id] = found.message
            pending.remove(node)
            progressed = True
            reporter.update(count_stages(state, pending, failed))
            if found.event:
                reporter.log(f"{node.title}: {found.event}")
        if not progressed:
            time.sleep(0.2)
    return failed


@dataclasses.dataclass(frozen=True)
class _Done:
    """The stage is finished; `event` is its duration if this process ran it."""

    event: str = ""


@dataclasses.dataclass(frozen=True)
class _Failed:
    """The stage failed, here or elsewhere."""

    message: str
    event: str = ""


def _attempt(
    state: PlanState, node: Node, reporter: Reporter, since: float, threads: int | None, keep_going: bool
) -> _Done | _Failed | None:
    """Run the stage if its inputs are finished and no other process runs it; None: it stays pending."""
    try:
        if state.entry(node) is not None:
            return _Done()
        ingredients = state.ingredients(node)
    except ExpungeError as error:
        if not keep_going:
            raise
        return _Failed(str(error), event=f"FAILED: {error}")
    if ingredients is None:
        return None
    with state.store.lock(ingredients.key) as acquired:
        if not acquired:
            return None
        if state.entry(node) is not None:
            return _Done()
        message = state.store.read_failure(ingredients.key, since)  # of another process
        if message is not None:
            return _Failed(message)
        try:
            entry = _compute(state, node, ingredients, reporter, threads)
        except (KeyboardInterrupt, Interrupted):
            raise
        except (Exception, SystemExit, GeneratorExit) as error:
            if _is_disk_full(error):
                raise
            if isinstance(error, ChangedDataError):
                _drop_data(state, node)
            message = error_text(error)
            trace = None if isinstance(error, ExpungeError) else traceback.format_exc()
            state.store.record_failure(ingredients.key, node.title, message, trace)
            if not keep_going:
                raise
            return _Failed(message, event=f"FAILED: {message}")
    return _Done(event=format_duration(entry.seconds))


def _drop_data(state: PlanState, node: Node) -> None:
    """Drop the entry of the data stage of a node, so that the next run reads the data again."""
    entry = state.entry(state.graph.nodes[node.inputs["data"]])
    if entry is not None:
        state.store.drop(entry)


def _compute(state: PlanState, node: Node, ingredients: Ingredients, reporter: Reporter, threads: int | None) -> Entry:
    stage = state.stages[node.stage]
    found = {name: state.entry(state.graph.nodes[i]) for name, i in node.inputs.items()}
    entries = {name: entry for name, entry in found.items() if entry is not None}

    def run(out: Path, checkpoints: Path) -> str:
        inputs = StageInputs(
            config=node.config,
            directories={name: entry.path for name, entry in entries.items()},
            output_hashes={name: entry.output for name, entry in entries.items()},
            data_dir=node.data_dir,
            work_dir=checkpoints,
            progress=reporter.step,
        )
        with trusting(state.plan.trust):
            try:
                return stage.run(inputs, out)
            except OSError as error:  # files of ours raise FileError; the store would take this one for its own
                if _is_disk_full(error):
                    raise
                what = f"the code of the stage failed ({type(error).__name__}: {error})"
                raise FileError(what, where=error.filename or node.title) from error

    def count_threads() -> int:
        torch = sys.modules.get("torch")
        return int(torch.get_num_threads()) if torch is not None else threads or count_cores()

    return state.store.compute(ingredients, run, label=node.title, threads=count_threads)


def _is_disk_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__
    return False


def count_stages(state: PlanState, pending: Iterable[Node], failed: dict[str, str], workers: int = 1) -> PlanProgress:
    """Count finished and failed stages, and estimate the time for the pending ones."""
    pending = list(pending)
    seconds: dict[str, list[float]] = {}
    pending_ids = {node.id for node in pending}
    for node in state.graph.nodes.values():
        if node.id not in pending_ids and node.id not in failed:
            entry = state.entry(node)
            if entry is not None:
                seconds.setdefault(cost_group(node), []).append(entry.seconds)
    total = len(state.graph.nodes)
    left = estimate_left(Counter(map(cost_group, pending)), seconds, workers)
    return PlanProgress(total - len(pending) - len(failed), len(failed), total, left, sum(map(sum, seconds.values())))
