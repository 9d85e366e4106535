"""Draw one score of every method from a result file: the value of every seed, the mean and its interval.

The colours are readable on light and on dark pages, because an image cannot adapt to the page it is shown on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from expunge.core.errors import ConfigError, unknown_name_hint
from expunge.core.figures import add_axes, canvas, colour, render_svg
from expunge.evaluation.seeds import mean, t_interval
from expunge.experiments.config.selections import matches

from ..claims import cell_score
from ..summary import column_headings, row_label
from .panels import check_selection, group_panels

_ROW, _TOP, _PANEL, _GAP, _BOTTOM = 17, 44, 190, 22, 34
#: Names of rows in one figure.
ROWS = 400
_COLOURS = {"ink": "#767676", "muted": "#767676", "line": "#999999", "mean": "#2a78b8", "reference": "#c2571a"}

_TEXT: dict[str, Any] = {"textcoords": "offset points", "annotation_clip": False, "color": colour("ink")}


def render_figure(
    results: Mapping[str, Any], score: str, *, only: Mapping[str, Sequence[str]] | None = None, comment: str = ""
) -> str:
    """Draw one score of a plan as an SVG: a panel for every case and sparsity, a row for every method.

    Small dots are seeds, the large dot their mean, the bar its 95 % t interval, cut off at the edge of the panel. A
    dashed line is the mean of the cells that rerun the reference (`rerun` of the plan), if there are any.

    Args:
        results: see `read_results`.
        score: name of a score, or `gap:NAME` for its distance to the reference.
        only: axis to the labels to show; axes that are not named show all labels.
        comment: written into the file as an XML comment.

    Returns:
        The SVG file as a string.

    Raises:
        ConfigError: an axis, a label or the score is not in the results.

    >>> from expunge.experiments import render_figure
    >>> cells = [
    ...     {"labels": {"method": method, "seed": str(seed)}, "method": method, "sparsity": 0.9, "reference": seed,
    ...      "is_reference": method == "Retrain", "state": "finished", "scores": {"UA": value + seed}}
    ...     for method, value in (("Retrain", 20.0), ("FT", 12.0)) for seed in (0, 1)
    ... ]
    >>> axes = [{"name": "method", "role": "method", "labels": ["Retrain", "FT"]},
    ...         {"name": "seed", "role": "replicate", "labels": ["0", "1"]}]
    >>> svg = render_figure({"plan": {"name": "small"}, "axes": axes, "cells": cells}, "UA")
    >>> svg.startswith("<svg "), "small: UA %" in svg
    (True, True)
    """
    cells = [cell for cell in results["cells"] if matches(cell["labels"], check_selection(results, only or {}))]
    values = {id(cell): cell_score(cell, results["cells"], score) for cell in cells}
    cells = [cell for cell in cells if values[id(cell)] is not None]
    if not cells:
        known = sorted({name for cell in results["cells"] for name in cell["scores"]})
        raise ConfigError(f"no cell has the score {score!r}", hint=unknown_name_hint(score, known))
    roles = {axis["name"]: axis["role"] for axis in results["axes"]}
    panels = group_panels(results, cells, roles)
    methods = list(dict.fromkeys(row_label(cell, roles, "method") for cell in cells))
    if len(methods) > ROWS:
        raise ConfigError(f"the figure has more than {ROWS} rows", hint="choose labels with --only axis=label")
    heading = column_headings(results).get(score.removeprefix("gap:"), score)
    left = 12 + 6.1 * max(map(len, methods))
    columns = len(dict.fromkeys(column for _, column in panels))
    height = _TOP + _ROW * len(methods) + _BOTTOM
    numbers = [float(values[id(cell)] or 0.0) for cell in cells]
    sentences = []
    with canvas(round(left + columns * (_PANEL + _GAP)), -(-len(panels) // columns) * height) as figure:
        for place, ((case, column), members) in enumerate(panels.items()):
            x, y = left + (place % columns) * (_PANEL + _GAP), (place // columns) * height
            axes = add_axes(figure, x, y + _TOP, _PANEL, _ROW * len(methods), [])
            heads = (case, column) if case else (column, "")
            _draw_empty_panel(axes, heads, methods if place % columns == 0 else [], numbers)
            axes.set_ylim(len(methods) - 0.5, -0.5)
            rerun = [float(values[id(c)] or 0.0) for c in members if results.get("rerun") in c["labels"].values()]
            if rerun:
                axes.axvline(mean(rerun), color=colour("reference"), dashes=(4, 3), gid="rerun")
            for row, method in enumerate(methods):
                own = [float(values[id(c)] or 0.0) for c in members if row_label(c, roles, "method") == method]
                _draw_dots(axes, own, row)
            if place % columns == 0:
                axes.annotate(heading, (0.5, 0), (0, 4 - _BOTTOM), xycoords="axes fraction", ha="center", **_TEXT)
            sentences.append(_describe_panel(heads, methods, members, values, roles))
        title = f"{results['plan']['name']}: {heading}"
        digest = hashlib.sha256(f"{title}\n{score}\n{comment}".encode()).hexdigest()
        return render_svg(
            figure, title=title, description=" ".join(sentences), identity=f"figure-{digest[:8]}", colours=_COLOURS,
            comment=comment,
        )  # fmt: skip


def _draw_empty_panel(axes: Any, heads: tuple[str, str], rows: Sequence[str], numbers: Sequence[float]) -> None:
    """Draw headings, row names, and an x axis that covers all numbers."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    low, high = min(numbers), max(numbers)
    span = (high - low) or max(abs(high), 1.0)
    ticks = MaxNLocator(nbins=5, steps=[1, 2, 5, 10]).tick_values(low, high if high > low else low + span)
    axes.set_xlim(min(ticks[0], low) - 0.04 * span, max(ticks[-1], high) + 0.04 * span)
    axes.set_xticks(ticks)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.6g}"))
    axes.grid(axis="x", alpha=0.3)
    axes.set_yticks(range(len(rows)), rows)
    for text, up, weight in ((heads[0], 28, "bold"), (heads[1], 12, "normal")):
        axes.annotate(text, (0, 1), (0, up), xycoords="axes fraction", fontweight=weight, gid="head", **_TEXT)


def _draw_dots(axes: Any, values: Sequence[float], row: int) -> None:
    centre = mean(values)
    if centre is None:
        return
    rows = [row] * len(values)
    axes.plot(values, rows, "o", markersize=3.2, markeredgewidth=0, color=colour("mean"), alpha=0.45, gid="seeds")
    interval = t_interval(values)
    if interval is not None:
        ends = np.clip(interval, *axes.get_xlim())
        axes.plot(ends, [row, row], color=colour("mean"), linewidth=1.5, gid="interval")
    axes.plot([centre], [row], "o", markersize=6.8, markeredgewidth=0, color=colour("mean"), gid="mean")


def _describe_panel(
    heads: tuple[str, str],
    methods: Sequence[str],
    members: Sequence[Mapping[str, Any]],
    values: Mapping[int, float | None],
    roles: Mapping[str, str],
) -> str:
    """The means of a panel as text, for screen readers."""
    found = []
    for method in methods:
        centre = mean([float(values[id(c)] or 0.0) for c in members if row_label(c, roles, "method") == method])
        if centre is not None:
            found.append(f"{method} {centre:.4g}")
    return f"{', '.join(head for head in heads if head)}: {'; '.join(found)}."
