"""The report as one HTML file without scripts, fonts or network requests; it works offline, from `file://`."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from expunge.core.errors import printable
from expunge.core.files import PathLike, write_text
from expunge.core.reading.file_names import check_format

from .content import ReportContent
from .figures import draw_masks
from .formatting import describe_content, format_count
from .limits import list_limits
from .provenance_tables import flatten_facts
from .summary.box import build_summary
from .summary.warnings import list_warnings
from .view import build_request_view, build_scenario_view, collect_definitions, collect_guarantees

if TYPE_CHECKING:
    import jinja2


def write_report(path: PathLike, content: ReportContent) -> None:
    """Write the report as one self-contained HTML file, atomically; equal content gives equal bytes.

    Args:
        path: file to write; missing directories are created.
        content: content of the report.

    Raises:
        FileError: the path is a directory or ends like another format, or cannot be written.

    Examples:
        >>> from pathlib import Path
        >>> from expunge.report import (
        ...     Comparison, ModelResult, ReportContent, RequestSummary, Scenario, read_scores, write_report
        ... )
        >>> retrain = ModelResult("Retrain", "retrained", read_scores([{"name": "UA", "value": 5.0, "unit": "%"}]))
        >>> ft = ModelResult("FT", "unlearned", read_scores([{"name": "UA", "value": 6.0, "unit": "%"}]))
        >>> scenario = Scenario("20 records", RequestSummary(20), (Comparison("dense", (retrain, ft)),))
        >>> write_report("report.html", ReportContent("Forgetting digits", (scenario,)))
        >>> "+1.00" in Path("report.html").read_text(encoding="utf-8")  # the gap of FT to Retrain
        True
    """
    write_text(check_format(path, "HTML"), render_report(content))


def render_report(content: ReportContent) -> str:
    """Render the report as HTML; everything from the content is escaped, including control characters.

    Args:
        content: content of the report.

    Returns:
        The text of the page; equal content gives equal text.

    Examples:
        >>> from expunge.report import Comparison, ModelResult, ReportContent, RequestSummary, Scenario, render_report
        >>> models = (ModelResult("FT", "unlearned"),)
        >>> scenario = Scenario("20 records", RequestSummary(20), (Comparison("dense", models),))
        >>> page = render_report(ReportContent("A & B", (scenario,)))
        >>> "A &amp; B" in page, "What this does not show" in page
        (True, True)
    """
    limits, masks = list_limits(content), draw_masks(content)
    text = _load_template().render(
        content=content,
        lead=describe_content(content),
        warnings=list_warnings(content),
        summary=build_summary(content, len(limits)),
        requests=[build_request_view(scenario, place) for place, scenario in enumerate(content.scenarios)],
        scenarios=[
            build_scenario_view(scenario, place, masks[place]) for place, scenario in enumerate(content.scenarios)
        ],
        definitions=collect_definitions(content),
        guarantees=collect_guarantees(content),
        noisy=any(c.noise_floors() for s in content.scenarios for c in s.comparisons),
        spreads=any(
            score.spread is not None for s in content.scenarios for m in s.models() for score in m.scores.values()
        ),
        steps=any(m.optimiser_steps is not None for s in content.scenarios for m in s.models()),
        intervals=any(score.interval for s in content.scenarios for m in s.models() for score in m.scores.values()),
        limits=limits,
        provenance=flatten_facts(content.provenance),
        versions=flatten_facts(content.versions),
    )
    return printable(text)


@functools.cache
def _load_template() -> jinja2.Template:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("expunge.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["count"] = format_count
    return environment.get_template("report.html.j2")
