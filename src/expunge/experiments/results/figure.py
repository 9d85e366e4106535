"""A figure of a plan, from its result file alone: one score of every method, seed by seed, with its mean and interval.

Written by hand as SVG, so that no library version changes a byte. Colours work on light and on dark pages.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from expunge.core.errors import ConfigError, unknown_name_hint
from expunge.experiments.config.plan import matches

from .claims import mean, score_of, t_interval
from .summary import headings, row_label

_ROW, _TOP, _PANEL, _GAP, _BOTTOM = 17, 44, 190, 22, 34
_INK, _FAINT, _MARK, _LINE = "#777", "#999", "#2a78b8", "#c2571a"


def render_figure(
    results: Mapping[str, Any], score: str, *, only: Mapping[str, Sequence[str]] | None = None, source: str = ""
) -> str:
    """An SVG: a panel for every case and sparsity, a line for every method.

    Small dots are seeds, the large one their mean, the bar its 95 % t interval. A dashed line is the mean of the cells
    that repeat the reference (`again` of the plan), where there are any.

    Args:
        results: see `read_results`.
        score: name of a score, or `gap:NAME`.
        only: axis to the labels that are shown.
        source: kept in the file as a comment.

    Raises:
        ConfigError: an axis, a label or the score is not in the results.
    """
    cells = [cell for cell in results["cells"] if matches(cell["labels"], _checked(results, only or {}))]
    values = {id(cell): score_of(cell, results["cells"], score) for cell in cells}
    cells = [cell for cell in cells if values[id(cell)] is not None]
    if not cells:
        known = sorted({name for cell in results["cells"] for name in cell["scores"]})
        raise ConfigError(f"no cell has the score {score!r}", hint=unknown_name_hint(score, known))
    roles = {axis["name"]: axis["role"] for axis in results["axes"]}
    panels = _panels(results, cells, roles)
    methods = list(dict.fromkeys(row_label(cell, roles, "method") for cell in cells))
    low, high, ticks = _scale([float(values[id(cell)] or 0.0) for cell in cells])
    left = 12 + 6.1 * max(map(len, methods))
    columns = len(dict.fromkeys(column for _, column in panels))
    lines = -(-len(panels) // columns)
    height_of_panel = _TOP + _ROW * len(methods) + _BOTTOM
    width, height = left + columns * (_PANEL + _GAP), lines * height_of_panel
    heading = headings(results).get(score.removeprefix("gap:"), score)
    title = f"{results['plan']['name']}: {heading}"
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'font-family="system-ui, sans-serif" font-size="11" fill="{_INK}" role="img">',
        f"<!-- {escape(source)} -->",
        f"<title>{escape(title)}</title>",
    ]
    for place, ((case, column), members) in enumerate(panels.items()):
        x0, y0 = left + (place % columns) * (_PANEL + _GAP), (place // columns) * height_of_panel
        names = methods if place % columns == 0 else []
        heads = (case, column) if case else (column, "")
        out += _panel(heads, (x0, y0), names, len(methods), ticks, (low, high))
        again = [float(values[id(c)] or 0.0) for c in members if results.get("again") in c["labels"].values()]
        if again:
            at = x0 + _PANEL * (sum(again) / len(again) - low) / (high - low)
            end = y0 + _TOP + _ROW * len(methods)
            out.append(f'<path d="M{at:.1f} {y0 + _TOP}V{end}" stroke="{_LINE}" stroke-dasharray="4 3"/>')
        for number, method in enumerate(methods):
            own = [float(values[id(c)] or 0.0) for c in members if row_label(c, roles, "method") == method]
            out += _dots(own, x0, y0 + _TOP + _ROW * (number + 0.5), low, high)
    for number in range(lines):
        y = (number + 1) * height_of_panel - 4
        out.append(f'<text x="{left + _PANEL / 2:.1f}" y="{y}" text-anchor="middle">{escape(heading)}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"


def _checked(results: Mapping[str, Any], only: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    labels = {axis["name"]: axis["labels"] for axis in results["axes"]}
    for name, wanted in only.items():
        if name not in labels:
            raise ConfigError(f"the plan has no axis {name!r}", hint=unknown_name_hint(name, labels))
        for label in wanted:
            if label not in labels[name]:
                hint = unknown_name_hint(label, labels[name])
                raise ConfigError(f"the axis {name} has no {label!r}", hint=hint)
    return {name: list(wanted) for name, wanted in only.items()}


def _panels(
    results: Mapping[str, Any], cells: Sequence[Mapping[str, Any]], roles: Mapping[str, str]
) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """Cells by case and sparsity; a case a row of panels."""
    cases = [axis for axis in results["axes"] if axis["role"] == "case"]
    names = list(dict.fromkeys(row_label(cell, roles, "sparsity") for cell in cells))
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for choice in itertools.product(*(axis["labels"] for axis in cases)):
        case = {axis["name"]: label for axis, label in zip(cases, choice, strict=True)}
        own = [cell for cell in cells if matches(cell["labels"], case)]
        for name in names if own else ():
            found[", ".join(choice), name] = [cell for cell in own if row_label(cell, roles, "sparsity") == name]
    return found


def _scale(values: Sequence[float]) -> tuple[float, float, list[float]]:
    """Ends of the axis and round ticks between them."""
    low, high = min(values), max(values)
    span = (high - low) or max(abs(high), 1.0)
    step = next(s for k in range(-9, 10) for s in (10.0**k, 2 * 10.0**k, 5 * 10.0**k) if span / s <= 5)
    first, last = step * int(low // step), step * -int(-high // step)
    count = round((last - first) / step)
    return first - 0.04 * span, last + 0.04 * span, [first + step * i for i in range(count + 1)]


def _panel(
    heads: tuple[str, str],
    corner: tuple[float, float],
    names: Sequence[str],
    rows: int,
    ticks: Sequence[float],
    ends: tuple[float, float],
) -> list[str]:
    """Headings, ticks and the names of the rows."""
    (x0, y0), (low, high) = corner, ends
    bottom = y0 + _TOP + _ROW * rows
    out = [
        f'<text x="{x0:.1f}" y="{y0 + 16}" font-weight="600">{escape(heads[0])}</text>',
        f'<text x="{x0:.1f}" y="{y0 + 32}">{escape(heads[1])}</text>',
    ]
    for tick in ticks:
        x = x0 + _PANEL * (tick - low) / (high - low)
        out.append(f'<path d="M{x:.1f} {y0 + _TOP}V{bottom}" stroke="{_FAINT}" stroke-opacity=".3"/>')
        out.append(f'<text x="{x:.1f}" y="{bottom + 13}" text-anchor="middle">{tick:g}</text>')
    for number, name in enumerate(names):
        y = y0 + _TOP + _ROW * (number + 0.5) + 4
        out.append(f'<text x="{x0 - 8:.1f}" y="{y:.1f}" text-anchor="end">{escape(name)}</text>')
    return out


def _dots(values: Sequence[float], x0: float, y: float, low: float, high: float) -> list[str]:
    def at(value: float) -> float:
        return x0 + _PANEL * (min(max(value, low), high) - low) / (high - low)

    centre = mean(values)
    if centre is None:
        return []
    out = [f'<circle cx="{at(v):.1f}" cy="{y:.1f}" r="1.6" fill="{_MARK}" fill-opacity=".45"/>' for v in values]
    if len(values) > 1:
        first, last = t_interval(values)
        out.append(f'<path d="M{at(first):.1f} {y:.1f}H{at(last):.1f}" stroke="{_MARK}" stroke-width="1.5"/>')
    return [*out, f'<circle cx="{at(centre):.1f}" cy="{y:.1f}" r="3.4" fill="{_MARK}"/>']
