"""Run the stages of a few cells in this process; the first error is raised unchanged."""

from __future__ import annotations

import errno
import time

from expunge.core.errors import ExpungeError, FileError, Interrupted
from expunge.core.files import PathLike
from expunge.experiments.config.plan import Plan
from expunge.experiments.scheduler.loop import run_pending_stages
from expunge.experiments.scheduler.progress import NullReporter, Reporter
from expunge.experiments.scheduler.run import RESUME_HINT, sigterm_as_interrupt
from expunge.experiments.scheduler.status import PlanState, entry_or_none
from expunge.experiments.store.environment import check_platform
from expunge.experiments.store.shared import open_store
from expunge.experiments.store.store import Entry


def open_state(plan: Plan, store: PathLike, *, originals: bool) -> PlanState:
    """Open the stages of a plan and a store; nothing is computed or written."""
    check_platform()
    return PlanState(plan, open_store(store), originals=originals)


def is_finished(state: PlanState) -> bool:
    """Whether every stage is in the store."""
    return all(entry_or_none(state, node) is not None for node in state.graph.nodes.values())


def run_stages(state: PlanState, reporter: Reporter | None) -> None:
    """Run the stages that are not in the store.

    Raises:
        ExpungeError: a stage failed, in this process (raised unchanged) or in another one.
        FileError: the disk is full.
        Interrupted: Ctrl-C or SIGTERM; completed stages are cached.
        Exception: a bug of expunge, or of custom code that the configuration names; raised unchanged.
    """
    try:
        with sigterm_as_interrupt():
            failures = run_pending_stages(
                state, reporter or NullReporter(), since=time.time(), keep_going=False, check_bytes=None
            )
    except (KeyboardInterrupt, Interrupted) as error:
        if isinstance(error, Interrupted):  # a training, which says what of it is on disk
            raise Interrupted(f"stopped: {error.what}", hint=f"{RESUME_HINT} ({error.hint})") from error
        raise Interrupted("stopped", hint=RESUME_HINT) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = error.filename or state.store.root
            raise FileError("the disk is full", where=where, hint=f"free some space; {RESUME_HINT}") from error
        raise
    state.save_facts()
    for message in failures.values():
        raise ExpungeError(message)


def get_entry(state: PlanState, node_id: str) -> Entry:
    """The store entry of a finished stage, with its files.

    Raises:
        FileError: a file is damaged.
    """
    entry = state.entry(state.graph.nodes[node_id])
    assert entry is not None
    damage = state.store.check(entry)
    if damage is not None:
        raise FileError(f"the stored result is damaged ({damage})", where=entry.path, hint=RESUME_HINT)
    return entry
