"""The figure of the gaps to Retrain: dots on the band of the noise floor, worst first.

A panel for each score with a row for each model; of a single model, one panel with a row for each score.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from expunge.core.figures import add_axes, canvas, colour, render_svg
from expunge.report.content import Scenario
from expunge.report.formatting import DASH, MINUS, format_signed
from expunge.report.summary.gaps import Gap, rank_models, select_gap_names

_WIDTH, _LEFT, _RIGHT, _TOP, _ROW, _DOT = 340, 146, 52, 8, 21, 9


def draw_gap_panels(scenario: Scenario, identity: str) -> list[dict[str, Any]]:
    """Draw a panel for each score: a row for each unlearned model, worst first, the same order in each panel.

    Of a single model, draw one panel: a row for each score, the largest gap first.

    Args:
        scenario: its unlearned models and references.
        identity: prefix of the ids in the SVG; unique in the page.

    Returns:
        `name` (of a score, or of the single model) and `figure` of each panel; empty if no model has a gap.
    """
    ranked = rank_models(scenario)
    if len(ranked) == 1:
        _, model, gaps = ranked[0]
        gaps = sorted(gaps, key=lambda gap: -abs(gap.points))
        figure = draw_gap_panel(model.label, [gap.name for gap in gaps], gaps, f"{identity}g0")
        return [{"name": model.label, "figure": figure}]
    several = len(scenario.comparisons) > 1
    labels = [f"{model.label}, {comparison.label}" if several else model.label for comparison, model, _ in ranked]
    panels: list[dict[str, Any]] = []
    for name in select_gap_names(scenario.models()):
        rows = [next((gap for gap in gaps if gap.name == name), None) for _, _, gaps in ranked]
        if any(row is not None for row in rows):
            figure = draw_gap_panel(name, labels, rows, f"{identity}g{len(panels)}")
            panels.append({"name": name, "figure": figure})
    return panels


def choose_gap_axis_end(largest: float) -> float:
    """Choose the end of the axis: the smallest of 1, 2, 5, 10, 20, ... points that is not below the largest value."""
    if largest <= 1:
        return 1.0
    base = 10.0 ** math.floor(math.log10(largest))
    return next(base * step for step in (1, 2, 5, 10) if largest <= base * step * (1 + 1e-9))


def draw_gap_panel(name: str, labels: Sequence[str], rows: Sequence[Gap | None], identity: str) -> Markup:
    """Draw gaps in percentage points: a filled dot beyond the noise floor, an empty one within it.

    Args:
        name: of the panel.
        labels: of the rows: models, or scores.
        rows: the gap of each row; None if there is none.
        identity: prefix of the ids in the SVG; unique in the page.
    """
    present = [row for row in rows if row is not None]
    end = choose_gap_axis_end(max(max(abs(row.points), row.floor_points or 0.0) for row in present))
    height, width = _ROW * len(rows), _WIDTH - _LEFT - _RIGHT
    with canvas(_WIDTH, _TOP + height + 22, 11.5) as figure:
        from matplotlib.patches import Ellipse

        axes = add_axes(figure, _LEFT, _TOP, width, height, [])
        axes.set_xlim(-end, end)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xticks([-end, 0, end], [f"{MINUS}{end:g}", "0", f"+{end:g}"])
        axes.set_yticks(range(len(rows)), [_shorten(label) for label in labels])
        axes.tick_params(axis="y", pad=9)
        for tick in axes.yaxis.get_majorticklabels():
            tick.set_color(colour("ink"))
        axes.axvline(0, color=colour("muted"), linewidth=1, dashes=(2, 3))
        tips, words = {}, []
        for place, (label, row) in enumerate(zip(labels, rows, strict=True)):
            text = DASH if row is None else format_signed(row.points, "%")
            where = {
                "xycoords": ("axes fraction", "data"),
                "textcoords": "offset points",
                "va": "center",
                "ha": "right",
            }
            axes.annotate(text, (1, place), (_RIGHT, 0), color=colour("ink"), **where)
            if row is None:
                continue
            if row.floor_points is not None:
                edge = {"edgecolor": colour("muted"), "linewidth": 0.7}
                axes.barh(place, 2 * row.floor_points, 0.94, -row.floor_points, color=colour("line"), **edge)
            tips[f":{place}"] = _describe(label, row)
            words.append(_describe(label, row))
            size = (2 * end * _DOT / width, _DOT / _ROW)
            fill = "none" if row.is_within else colour("forget")
            dot = Ellipse((row.points, place), *size, facecolor=fill, edgecolor=colour("ink"), linewidth=1.2)
            dot.set_gid(f":{place}")
            axes.add_patch(dot)
        title = f"{name}: gaps to Retrain in percentage points"
        description = f"{'; '.join(words)}."
        return Markup(render_svg(figure, title=title, description=description, identity=identity, tips=tips))


def _shorten(label: str, most: int = 23) -> str:
    return label if len(label) <= most else f"{label[: most - 1]}…"


def _describe(label: str, gap: Gap) -> str:
    text = f"{label} {format_signed(gap.points, '%')} points"
    if gap.floor_points is None:
        return f"{text}, no noise floor"
    relation = "within" if gap.is_within else "beyond"
    return f"{text}, {relation} the noise floor of {gap.floor_points:.2f}"
