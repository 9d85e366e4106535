"""A worker process of a plan: `python -m expunge.experiments.scheduler.worker <JSON>`, started by `run_in_workers`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from expunge.core.errors import ExpungeError, FileError, Interrupted
from expunge.core.trust import Trust, trusting
from expunge.experiments.config.plan import load_plan
from expunge.experiments.stages.registry import Stage, load_stage_table
from expunge.experiments.store.shared import open_store

from .loop import is_disk_full, run_pending_stages
from .parts import select_cells
from .progress import NullReporter
from .status import PlanState


def main(message: str) -> int:
    """Run the stages of the plan that the message names until none is left; returns the exit status."""
    body = json.loads(message)
    trust = Trust(
        tuple(body["trust"]["packages"]), tuple(body["trust"]["here"]), command_line=body["trust"]["command_line"]
    )
    stages = load_stage_table(body["stages"])  # given by the caller of `run_plan`
    with trusting(trust):  # inside, no name counts as given by a Python caller
        return _run_worker(body, trust, stages)


def _run_worker(message: dict[str, Any], trust: Trust, stages: Mapping[str, Stage]) -> int:
    plan = load_plan(message["plan"], message["overrides"], trust=trust)
    if plan.hash != message["hash"]:
        raise ExpungeError("the plan was edited while it was started", where=message["plan"], hint="start it again")
    plan = select_cells(plan, message["only"])
    state = PlanState(plan, open_store(message["store"]), stages)
    failed = run_pending_stages(state, NullReporter(), since=message["since"], threads=message["threads"])
    return 1 if failed else 0


def report_error(error: ExpungeError, pipe: int) -> None:
    """Tell the process that started this one why it ends; its log may be on the disk that is full."""
    body = {"what": error.what, "where": error.where, "hint": error.hint}
    with contextlib.suppress(OSError):
        os.write(pipe, json.dumps(body).encode() + b"\n")
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{error}\n")  # the text of an ExpungeError is printable
        sys.stderr.flush()


def _end_with_parent(parent: int) -> None:
    """Interrupt this process as Ctrl-C does when the process that started it has ended."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    # Background jobs of a shell inherit an ignored SIGINT, and Python then leaves it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    try:
        sys.exit(main(sys.argv[1]))
    except (KeyboardInterrupt, Interrupted):
        sys.exit(130)
    except ExpungeError as error:
        report_error(error, json.loads(sys.argv[1])["errors"])
        sys.exit(error.exit_code)
    except OSError as error:
        if not is_disk_full(error):
            raise
        report_error(FileError("the disk is full", where=error.filename), json.loads(sys.argv[1])["errors"])
        sys.exit(FileError.exit_code)
