"""The demonstration: scikit-learn's digits, pruned to 90 %, forgetting 5 % of the records and then a class."""

from __future__ import annotations

import time
from importlib import resources
from pathlib import Path
from typing import Any

from expunge.core.errors import ExpungeError, Interrupted
from expunge.core.files import PathLike
from expunge.experiments.cache import Store
from expunge.experiments.graph import graph_of
from expunge.experiments.plan import Plan, load_plan
from expunge.experiments.progress import Reporter, Silent
from expunge.experiments.results import collect, write_results
from expunge.experiments.runner import DEFAULT_STAGES
from expunge.experiments.stages import stage_table
from expunge.experiments.state import PlanState
from expunge.experiments.work import work
from expunge.report.html import write_report

from .reporting import report_of

_SUMMARY = (
    "A small CNN on scikit-learn's digits, dense and pruned to 90 % sparsity, forgets 5 % of its training records, and "
    "then a whole class; each method stands beside a model that was retrained without them."
)


def demo_plan() -> Plan:
    """The plan of the demonstration, which ships with the package."""
    with resources.as_file(resources.files("expunge.workflow") / "demo.yaml") as path:
        return load_plan(path)


def run_demo(output: PathLike, *, reporter: Reporter | None = None) -> dict[str, Any]:
    """Run the demonstration into a directory: store, results.json and report.html. Returns the results.

    Raises:
        ExpungeError: a stage failed.
        Interrupted: Ctrl-C; the same call goes on from there.
    """
    plan, place = demo_plan(), Path(output)
    graph = graph_of(plan.cells, originals=True)
    state = PlanState(plan, Store(place / "store"), stage_table(DEFAULT_STAGES), graph=graph)
    try:
        failures = work(state, reporter or Silent(), since=time.time())
    except (KeyboardInterrupt, Interrupted) as error:
        raise Interrupted("the demonstration was stopped", hint="the same command goes on from there") from error
    for message in failures.values():
        raise ExpungeError(message)
    body = collect(state, failures)
    write_results(place / "results.json", body)
    write_report(place / "report.html", report_of(state, title="expunge: a demonstration on digits", summary=_SUMMARY))
    return body
