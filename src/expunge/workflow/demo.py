"""The demonstration: a CNN on scikit-learn's digits, dense and 90 % sparse, forgets 5 % of the records, or a class."""

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
    "A small CNN on scikit-learn's digits, dense and pruned to 90 % sparsity, forgets 5 % of its training records, or "
    "a whole class; each method is compared with a model retrained without these records."
)


def load_demo_plan() -> Plan:
    """Load the plan of the demonstration, which is part of the package.

    >>> from expunge.workflow import load_demo_plan
    >>> plan = load_demo_plan()
    >>> len(plan.cells), [axis.name for axis in plan.axes]
    (48, ['seed', 'sparsity', 'forget', 'method'])
    """
    with resources.as_file(resources.files("expunge.workflow") / "demo.yaml") as path:
        return load_plan(path)


def run_demo(output: PathLike, *, reporter: Reporter | None = None) -> dict[str, Any]:
    """Run the demonstration and write the directories and files `store`, results.json and report.html. Takes a minute.

    Args:
        output: directory for the results.
        reporter: receives the progress.

    Returns:
        The results (docs/formats/results.md).

    Raises:
        ExpungeError: a stage failed, or the directory cannot be written.
        Interrupted: Ctrl-C; completed stages are cached.

    >>> from expunge.experiments import render_table
    >>> from expunge.workflow import run_demo
    >>> print(render_table(run_demo("demo")))  # doctest: +SKIP
    """
    from expunge.report import write_report

    from .report import make_report_content

    directory = Path(output)
    state = open_state(load_demo_plan(), directory / "store", originals=True)
    run_stages(state, reporter)
    body = collect(state, {})
    write_results(directory / "results.json", body)
    content = make_report_content(state, title="expunge: a demonstration on digits", summary=_SUMMARY)
    write_report(directory / "report.html", content)
    return body
