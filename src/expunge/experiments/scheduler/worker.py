"""One worker process of a plan: `python -m expunge.experiments.scheduler.worker <JSON>`, started by the runner."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from typing import Any

from expunge.core.errors import ExpungeError, Interrupted
from expunge.core.trust import Trust, trusting
from expunge.experiments.config.plan import load_plan
from expunge.experiments.stages.registry import stage_table
from expunge.experiments.store.store import Store

from .loop import work
from .progress import Silent
from .status import PlanState


def main(message: str) -> int:
    """Work on the plan that the message names until nothing is left; returns the exit status."""
    order = json.loads(message)
    trust = Trust(tuple(order["trust"]["packages"]), tuple(order["trust"]["here"]))
    with trusting(trust):  # from here on no name is taken for a Python caller's
        return _worked(order, trust)


def _worked(order: dict[str, Any], trust: Trust) -> int:
    plan = load_plan(order["plan"], order["overrides"], trust=trust)
    if plan.hash != order["hash"]:
        raise ExpungeError("the plan was edited while it was started", where=order["plan"], hint="start it again")
    state = PlanState(plan, Store(order["store"]), stage_table(order["stages"]))
    failed = work(state, Silent(), since=order["since"], threads=order["threads"])
    return 1 if failed else 0


def _end_with_parent(parent: int) -> None:
    """Stop as Ctrl-C does when the process that started this one is gone."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    # A process that a shell put into the background inherits an ignored SIGINT, and Python then leaves it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    try:
        sys.exit(main(sys.argv[1]))
    except (KeyboardInterrupt, Interrupted):
        sys.exit(130)
    except ExpungeError as error:
        sys.stderr.write(f"{error}\n")  # its text is printable
        sys.exit(error.exit_code)
