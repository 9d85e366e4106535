"""Running the stages of a few cells in this process; the first error ends it and reaches the caller as raised."""

from __future__ import annotations

import errno
import time

from expunge.core.errors import ExpungeError, FileError, Interrupted
from expunge.core.files import PathLike
from expunge.experiments.config.plan import Plan
from expunge.experiments.scheduler.graph import graph_of
from expunge.experiments.scheduler.loop import work
from expunge.experiments.scheduler.progress import Reporter, Silent
from expunge.experiments.scheduler.run import DEFAULT_STAGES, terminable
from expunge.experiments.scheduler.status import PlanState, safe_entry
from expunge.experiments.stages.registry import stage_table
from expunge.experiments.store.store import Entry, Store, check_platform

_AGAIN = "what was finished is kept; the same command goes on from there"


def open_state(plan: Plan, store: PathLike, *, originals: bool) -> PlanState:
    """The stages of a plan and where they stand in a store; nothing is computed or written."""
    check_platform()
    return PlanState(plan, Store(store), stage_table(DEFAULT_STAGES), graph=graph_of(plan.cells, originals=originals))


def is_finished(state: PlanState) -> bool:
    """Whether the store has every stage."""
    return all(safe_entry(state, node) is not None for node in state.graph.nodes.values())


def run_stages(state: PlanState, reporter: Reporter | None) -> None:
    """Compute what the store does not have yet.

    Raises:
        ExpungeError: a stage failed, with the class, place and hint that it had there; or it failed in another process.
        FileError: the disk is full.
        Interrupted: Ctrl-C or SIGTERM; the same call goes on from there.
        Exception: a defect, of expunge or of code that the configuration names, as it was raised.
    """
    try:
        with terminable():
            failures = work(state, reporter or Silent(), since=time.time(), keep_going=False)
    except (KeyboardInterrupt, Interrupted) as error:
        raise Interrupted("stopped", hint=_AGAIN) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = error.filename or state.store.root
            raise FileError("the disk is full", where=where, hint=f"free some space; {_AGAIN}") from error
        raise
    for message in failures.values():
        raise ExpungeError(message)


def entry_of(state: PlanState, node_id: str) -> Entry:
    """The finished stage."""
    entry = state.entry(state.graph.nodes[node_id])
    assert entry is not None
    return entry
