"""The report as one HTML file: no script, no font, no request; it reads the same from `file://` in ten years."""

from __future__ import annotations

import functools

import jinja2

from expunge.core.errors import printable
from expunge.core.files import PathLike, write_text

from .content import ReportContent
from .formatting import count, number, plural, summary
from .limits import limits
from .provenance_tables import flat
from .view import definitions, guarantees, request_view, scenario_view


def write_report(path: PathLike, content: ReportContent) -> None:
    """Write the report as one self-contained HTML file, whole or not at all; equal content gives equal bytes.

    Raises:
        FileError: the disk is full or the directory cannot be written.
    """
    write_text(path, render_report(content))


def render_report(content: ReportContent) -> str:
    """The report as HTML text; everything that comes from the content is escaped, control characters too."""
    text = _template().render(
        content=content,
        summary=summary(content),
        requests=[request_view(scenario, place) for place, scenario in enumerate(content.scenarios)],
        scenarios=[scenario_view(scenario, place) for place, scenario in enumerate(content.scenarios)],
        definitions=definitions(content),
        guarantees=guarantees(content),
        noisy=any(c.noise() for s in content.scenarios for c in s.comparisons),
        intervals=any(score.interval for s in content.scenarios for m in s.models() for score in m.scores.values()),
        limits=limits(content),
        provenance=flat(content.provenance),
        versions=flat(content.versions),
    )
    return printable(text)


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("expunge.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, count=count, plural=plural)
    return environment.get_template("report.html.j2")
