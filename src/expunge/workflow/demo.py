"""The demonstration: scikit-learn's digits, pruned to 90 %, forgetting 5 % of the records and then a class."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.core.files import PathLike
from expunge.experiments.config.plan import Plan, load_plan
from expunge.experiments.results.files import write_results
from expunge.experiments.scheduler.collect import collect

from .run_stages import open_state, run_stages

if TYPE_CHECKING:
    from expunge.experiments.scheduler.progress import Reporter

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
        ExpungeError: a stage failed, or the directory cannot be written.
        Interrupted: Ctrl-C; the same call goes on from there.
    """
    from expunge.report import write_report

    from .report import report_of

    place = Path(output)
    state = open_state(demo_plan(), place / "store", originals=True)
    run_stages(state, reporter)
    body = collect(state, {})
    write_results(place / "results.json", body)
    write_report(place / "report.html", report_of(state, title="expunge: a demonstration on digits", summary=_SUMMARY))
    return body
