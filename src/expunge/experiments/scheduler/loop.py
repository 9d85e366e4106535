"""The loop of one process: run the first stage that is ready and not locked, until none is left."""

from __future__ import annotations

import dataclasses
import errno
import shutil
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

from expunge.core.errors import ChangedDataError, ExpungeError, FileError, Interrupted, StoreError
from expunge.core.trust import trusting
from expunge.data.reading.index_cache import use_index_directory
from expunge.experiments.stages.registry import StageInputs
from expunge.experiments.store.environment import count_cores
from expunge.experiments.store.integrity import SMALL_BYTES
from expunge.experiments.store.store import Entry, Ingredients, error_text

from .forecast import Forecaster
from .graph import Node
from .progress import Reporter, format_duration, wants_progress
from .status import GraphState, entry_or_none


def run_pending_stages(
    state: GraphState,
    reporter: Reporter,
    *,
    since: float,
    threads: int | None = None,
    keep_going: bool = True,
    check_bytes: int | None = SMALL_BYTES,
) -> dict[str, str]:
    """Run stages until none is pending.

    A stage that another process is running is left to that process; if no other stage is ready, this one waits. A
    finished stage whose files were damaged runs again, and so does one with a damaged checkpoint, from its beginning.

    Args:
        state: the plan and its store.
        reporter: receives the progress.
        since: start of the run (seconds since 1970); earlier failures of other processes are ignored.
        threads: recorded with the entries if torch is not imported.
        keep_going: run the stages that do not need a failed one; else the first error of this process is raised.
        check_bytes: the files of finished stages are compared with their hashes up to this size, and larger ones before
            a stage reads them; None: all of them.

    Returns:
        Node id to the message of the failure, for every stage that failed or needs one that failed.
    """
    pending = dict(state.graph.nodes)
    failed: dict[str, str] = {}
    repaired: Counter[str] = Counter()
    forecaster = Forecaster(state.graph, state.store) if wants_progress(reporter) else None
    while pending:
        progressed = False
        for node in list(pending.values()):
            blocked = next((failed[i] for i in node.inputs.values() if i in failed), None)
            try:
                found = Failed(blocked) if blocked else attempt_stage(
                    state, node, reporter, since, threads, keep_going, check_bytes
                )  # fmt: skip
            except Damaged as damage:
                _repair(state, damage, repaired)
                pending = {name: node for name, node in state.graph.nodes.items() if name not in failed}
                if forecaster is not None:
                    forecaster.reopen(pending)
                progressed = True
                break
            if found is None:
                continue
            if isinstance(found, Failed):
                failed[node.id] = found.message
            del pending[node.id]
            progressed = True
            if forecaster is not None:
                if isinstance(found, Failed):
                    forecaster.fail(node)
                else:
                    forecaster.finish(node, entry_or_none(state, node))
                reporter.update(forecaster.progress())
            if found.event:
                reporter.log(f"{node.title}: {found.event}")
        if not progressed:
            time.sleep(0.2)
    return failed


@dataclasses.dataclass(frozen=True)
class Done:
    """The stage is finished; `event` is its duration if this process ran it."""

    event: str = ""


@dataclasses.dataclass(frozen=True)
class Failed:
    """The stage failed, here or elsewhere."""

    message: str
    event: str = ""


class Damaged(Exception):
    """An entry (None: a checkpoint, which is removed already) is damaged: its stage has to run again."""

    def __init__(self, entry: Entry | None, what: str) -> None:
        super().__init__(what)
        self.entry, self.what = entry, what


def _repair(state: GraphState, damage: Damaged, repaired: Counter[str]) -> None:
    """Remove a damaged entry, unless another process is computing it again.

    Raises:
        FileError: it was damaged again and again.
    """
    state.reset()
    if damage.entry is None:
        return
    repaired[damage.entry.key] += 1
    if repaired[damage.entry.key] > 3:
        raise FileError(
            f"was damaged again after its stage had run again ({damage.what})", where=damage.entry.path,
            hint=f"check the disk, then remove {damage.entry.path}",
        )  # fmt: skip
    if not state.store.discard(damage.entry, damage.what):
        repaired[damage.entry.key] -= 1
        time.sleep(0.2)


def attempt_stage(
    state: GraphState,
    node: Node,
    reporter: Reporter,
    since: float,
    threads: int | None,
    keep_going: bool,
    check_bytes: int | None,
) -> Done | Failed | None:
    """Run the stage if its inputs are finished and no other process runs it; None: it stays pending.

    Raises:
        Damaged: the entry of the stage or of an input, or its checkpoint.
    """
    try:
        entry = state.entry(node)
        if entry is not None:
            _check_entry(state, entry, check_bytes)
            return Done()
        ingredients = state.ingredients(node)
    except StoreError:  # it cannot be reached: no stage can run
        raise
    except ExpungeError as error:
        if not keep_going:
            raise
        return Failed(str(error), event=f"FAILED: {error}")
    if ingredients is None:
        return None
    with state.store.lock(ingredients.key) as acquired:
        if not acquired:
            return None
        if state.entry(node) is not None:
            return Done()
        damage = state.store.damaged.get((ingredients.stage, ingredients.key))
        if damage is not None:
            reporter.log(f"{node.title}: its stored result was damaged ({damage}); it is computed again")
        message = state.store.read_failure(ingredients.key, since)  # of another process
        if message is not None:
            return Failed(message)
        try:
            entry = _compute(state, node, ingredients, reporter, threads)
        except (KeyboardInterrupt, Interrupted, Damaged):
            raise
        except (Exception, SystemExit, GeneratorExit) as error:
            if is_disk_full(error) or isinstance(error, StoreError):
                raise
            if isinstance(error, ChangedDataError):
                _drop_data(state, node)
            message = error_text(error)
            understood = isinstance(error, ExpungeError) and isinstance(error.__cause__, ExpungeError | None)
            trace = None if understood else traceback.format_exc()  # of custom code too, whose error names it
            state.store.record_failure(ingredients.key, node.title, message, trace)
            if not keep_going:
                raise
            return Failed(message, event=f"FAILED: {message}")
    return Done(event=format_duration(entry.seconds))


def _drop_data(state: GraphState, node: Node) -> None:
    """Drop the entry of the data stage of a node, so that the next run reads the data again."""
    entry = state.entry(state.graph.nodes[node.inputs["data"]])
    if entry is not None:
        state.store.drop(entry)


def _compute(state: GraphState, node: Node, ingredients: Ingredients, reporter: Reporter, threads: int | None) -> Entry:
    stage = state.stages[node.stage]
    found = {name: state.entry(state.graph.nodes[i]) for name, i in node.inputs.items()}
    entries = {name: entry for name, entry in found.items() if entry is not None}
    for entry in entries.values():
        _check_entry(state, entry)
    work = state.store.work_directory(ingredients.key)
    resumes = work.exists() and any(work.iterdir())

    def run(out: Path, checkpoints: Path) -> str:
        inputs = StageInputs(
            config=node.settings,
            directories={name: entry.path for name, entry in entries.items()},
            output_hashes={name: entry.output for name, entry in entries.items()},
            data_dir=node.data_dir,
            work_dir=checkpoints,
            progress=reporter.step,
        )
        with trusting(state.trust), use_index_directory(state.store.index_path):
            try:
                return stage.run(inputs, out)
            except OSError as error:  # files of ours raise FileError; the store would take this one for its own
                if is_disk_full(error):
                    raise
                what = f"the code of the stage failed ({type(error).__name__}: {error})"
                raise FileError(what, where=error.filename or node.title) from error

    def count_threads() -> int:
        torch = sys.modules.get("torch")
        return int(torch.get_num_threads()) if torch is not None else threads or count_cores()

    try:
        return state.store.compute(ingredients, run, label=node.title, threads=count_threads)
    except (KeyboardInterrupt, Interrupted, StoreError):
        raise
    except Exception as error:
        for entry in entries.values():  # it may have been damaged, or removed by another process, in the meantime
            _check_entry(state, entry, again=True)
        if resumes and isinstance(error, FileError) and str(work) in str(error.where):
            shutil.rmtree(work, ignore_errors=True)
            reporter.log(f"{node.title}: its checkpoint was damaged ({error.what}); it starts from the beginning")
            raise Damaged(None, str(error)) from error
        raise


def _check_entry(state: GraphState, entry: Entry, most: int | None = None, *, again: bool = False) -> None:
    """Raise Damaged if the files of an entry are not as they were written."""
    damage = state.store.check(entry, most, again=again)
    if damage is not None:
        raise Damaged(entry, damage)


def is_disk_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__
    return False
