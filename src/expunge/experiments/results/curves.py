"""Draw one score against the passes of the methods: a line for each entry of `curves`, with the noise of retraining.

The colours are readable on light and on dark pages, because an image cannot adapt to the page it is shown on.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from expunge.core.errors import ConfigError, unknown_name_hint
from expunge.core.figures import add_axes, canvas, colour, render_svg
from expunge.core.show import repr_fields
from expunge.evaluation.facts import score_facts
from expunge.evaluation.seeds import mean, t_interval
from expunge.experiments.config.selections import matches, wanted_labels

from .claims import cell_score
from .figure import check_selection, group_panels
from .summary import column_headings, row_label

#: Lines of one figure: it has as many colours.
LINES = 8
_WIDTH, _HEIGHT, _TOP, _LEFT, _BOTTOM, _GAP = 250, 190, 44, 62, 46, 10
_COLOURS = {
    "ink": "#767676", "muted": "#767676", "line": "#999999",
    "curve_1": "#2d7dbf", "curve_2": "#c05c22", "curve_3": "#288950", "curve_4": "#9960c3", "curve_5": "#ca4889",
    "curve_6": "#19858f", "curve_7": "#8a781d", "curve_8": "#c55551",
}  # fmt: skip
#: The label of the band.
AGAIN = "retrained again"
#: Cases in one row, if there is one sparsity only.
_SIDE_BY_SIDE = 2
_MARKERS = "osD^vP*X"
_TEXT: dict[str, Any] = {"textcoords": "offset points", "annotation_clip": False}


@dataclasses.dataclass(frozen=True)
class CurvePoint:
    """One point of a line: the cells of one method that differ only in their seeds.

    Attributes:
        label: of the method.
        passes: mean fraction of the reference's passes.
        mean: mean of the score over the seeds.
        interval: its 95 % t interval; None with fewer than two seeds.
    """

    label: str
    passes: float
    mean: float
    interval: tuple[float, float] | None

    __repr__ = repr_fields

    def text(self) -> str:
        """`FT, 2 epochs: passes 0.1, 0.904 [0.87, 0.94]`."""
        ends = "" if self.interval is None else f" [{self.interval[0]:.4g}, {self.interval[1]:.4g}]"
        return f"{self.label}: passes {self.passes:.3g}, {self.mean:.4g}{ends}"


@dataclasses.dataclass(frozen=True)
class _Panel:
    heads: tuple[str, str]
    lines: Mapping[str, list[CurvePoint]]
    rerun: tuple[float, tuple[float, float]] | None
    target: float | None


def render_curves(
    results: Mapping[str, Any],
    score: str,
    *,
    curves: Mapping[str, Mapping[str, Any]] | None = None,
    only: Mapping[str, Sequence[str]] | None = None,
    log: Sequence[str] = (),
    comment: str = "",
) -> str:
    """Draw one score of a plan against passes as an SVG: a panel for every case and sparsity, a line for each curve.

    All panels have one axis of passes, and the panels of one case have one axis of the score. A point is the mean over
    the seeds of one method, at its passes as a fraction of the reference's; the bar is its 95 % t interval, cut off at
    the edge of the panel. The band is the t interval of the cells that rerun the reference (`rerun` of the plan), the
    line in it their mean. A dashed line is the mean of the reference itself, for scores that it has a value of.

    Args:
        results: see `read_results`.
        score: name of a score, or `gap:NAME` for its distance to the reference.
        curves: name of a line to the labels of its methods by axis; None: those of the plan.
        only: axis to the labels to show; axes that are not named show all labels.
        log: axes with a logarithmic scale: `x`, `y`.
        comment: written into the file as an XML comment.

    Returns:
        The SVG file as a string.

    Raises:
        ConfigError: there are no curves, or too many; an axis, a label or the score is not in the results; or a number
            is not positive and its axis is logarithmic.

    >>> from expunge.experiments import render_curves
    >>> methods = {"Retrain": (1.0, 0.0), "FT 1": (0.1, 0.9), "FT 4": (0.4, 0.5)}
    >>> cells = [
    ...     {"labels": {"method": method, "seed": str(seed)}, "method": method, "sparsity": 0.0, "reference": seed,
    ...      "is_reference": method == "Retrain", "state": "finished", "passes_fraction": passes,
    ...      "scores": {"KL on D_f": kl + seed / 100}}
    ...     for method, (passes, kl) in methods.items() for seed in (0, 1)
    ... ]
    >>> axes = [{"name": "method", "role": "method", "labels": list(methods)},
    ...         {"name": "seed", "role": "replicate", "labels": ["0", "1"]}]
    >>> results = {"plan": {"name": "small"}, "axes": axes, "cells": cells, "reference": "Retrain"}
    >>> svg = render_curves(results, "KL on D_f", curves={"FT": {"method": ["FT 1", "FT 4"]}}, log=["y"])
    >>> svg.startswith("<svg "), "FT 4: passes 0.4, 0.505" in svg
    (True, True)
    """
    chosen = check_curves(results, results.get("curves") or {} if curves is None else curves)
    panels = make_panels(results, score, chosen, only or {})
    heading = column_headings({**results, "columns": [score.removeprefix("gap:")]})[score.removeprefix("gap:")]
    heading = f"gap of {heading}" if score.startswith("gap:") else heading
    reference = str(results.get("reference", "the reference"))
    across = _find_limits(_collect_passes(panels), "x" in log, "x")
    styles = {name: place for place, name in enumerate(chosen)}
    right = 24 + 6.1 * max(map(len, (*chosen, AGAIN, reference)))
    columns = len(dict.fromkeys(panel.heads[1] for panel in panels))
    columns = min(_SIDE_BY_SIDE, len(panels)) if columns == 1 else columns
    width, height = _LEFT + _WIDTH + right + _GAP, _TOP + _HEIGHT + _BOTTOM
    tips: dict[str, str] = {}
    with canvas(round(columns * width), -(-len(panels) // columns) * height) as figure:
        for place, panel in enumerate(panels):
            x, y = (place % columns) * width + _LEFT, (place // columns) * height + _TOP
            axes = add_axes(figure, x, y, _WIDTH, _HEIGHT, ("left", "bottom"))
            case = [other for other in panels if other.heads[0] == panel.heads[0]]
            limits = across, _find_limits(_collect_scores(case), "y" in log, "y")
            _draw_scales(axes, limits, log, f"passes / passes of {reference}", heading)
            for text, up, weight in zip(_order_heads(panel.heads), (28, 12), ("bold", "normal"), strict=True):
                axes.annotate(
                    text, (0, 1), (0, up), xycoords="axes fraction", fontweight=weight, gid="head",
                    color=colour("ink"), **_TEXT,
                )  # fmt: skip
            ends = _draw_noise(axes, panel, limits[1], reference)
            ends += _draw_lines(axes, panel, styles, limits, tips, place)
            _draw_labels(axes, ends)
        title = f"{results['plan']['name']}: {heading} against passes"
        digest = hashlib.sha256(f"{title}\n{score}\n{comment}".encode()).hexdigest()
        return render_svg(
            figure, title=title, description=" ".join(map(_describe, panels)), identity=f"curves-{digest[:8]}",
            colours=_COLOURS, comment=comment, tips=tips,
        )  # fmt: skip


def check_curves(results: Mapping[str, Any], curves: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Check the lines of a figure against the axes of the results.

    Raises:
        ConfigError: there are none or too many, or an axis or a label is unknown.
    """
    if not curves:
        hint = "add to the plan: curves: {FT: {method: [FT 1 epoch, FT 4 epochs]}}"
        raise ConfigError("the plan has no curves", where="curves", hint=hint)
    if len(curves) > LINES:
        raise ConfigError(f"there are {len(curves)} curves, more than {LINES}", where="curves", hint="leave some out")
    return {
        name: dict(check_selection(results, {axis: wanted_labels(wanted) for axis, wanted in selection.items()}))
        for name, selection in curves.items()
    }


def make_panels(
    results: Mapping[str, Any], score: str, curves: Mapping[str, Mapping[str, Any]], only: Mapping[str, Sequence[str]]
) -> list[_Panel]:
    """Aggregate the cells of every panel to the points of its lines.

    Raises:
        ConfigError: no cell of a curve has the score.
    """
    roles = {axis["name"]: axis["role"] for axis in results["axes"]}
    every, rerun = results["cells"], results.get("rerun")
    cells = [cell for cell in every if matches(cell["labels"], check_selection(results, only))]
    cells = [cell for cell in cells if cell_score(cell, every, score) is not None]
    panels = []
    for heads, members in group_panels(results, cells, roles).items():
        lines = {name: _make_points(members, every, score, selection, roles) for name, selection in curves.items()}
        lines = {name: points for name, points in lines.items() if points}
        noise = [_value(cell, every, score) for cell in members if rerun in cell["labels"].values()]
        centre, interval = mean(noise), t_interval(noise)
        band = None if centre is None else (centre, interval or (centre, centre))
        target = None
        if not score.startswith("gap:") and score_facts(score).compared:
            target = mean([_value(cell, every, score) for cell in members if cell["is_reference"]])
        if lines:
            panels.append(_Panel(heads, lines, band, target))
    if not panels:
        known = sorted({name for cell in every for name in cell["scores"]})
        raise ConfigError(f"no cell of the curves has the score {score!r}", hint=unknown_name_hint(score, known))
    return panels


def _value(cell: Mapping[str, Any], cells: Sequence[Mapping[str, Any]], score: str) -> float:
    value = cell_score(cell, cells, score)
    assert value is not None
    return value


def _make_points(
    members: Iterable[Mapping[str, Any]],
    cells: Sequence[Mapping[str, Any]],
    score: str,
    selection: Mapping[str, Any],
    roles: Mapping[str, str],
) -> list[CurvePoint]:
    """The points of one line, by passes."""
    grouped: dict[str, list[Mapping[str, Any]]] = {}
    for cell in members:
        fraction = 1.0 if cell["is_reference"] else cell.get("passes_fraction")
        if matches(cell["labels"], selection) and fraction is not None:
            grouped.setdefault(row_label(cell, roles, "method"), []).append({**cell, "passes_fraction": fraction})
    points = []
    for label, own in grouped.items():
        values = [_value(cell, cells, score) for cell in own]
        passes = [cell["passes_fraction"] if not cell["is_reference"] else 1.0 for cell in own]
        points.append(CurvePoint(label, mean(passes) or 0.0, mean(values) or 0.0, t_interval(values)))
    return sorted(points, key=lambda point: point.passes)


def _collect_passes(panels: Sequence[_Panel]) -> list[float]:
    return [point.passes for panel in panels for line in panel.lines.values() for point in line]


def _collect_scores(panels: Sequence[_Panel]) -> list[float]:
    """All means of an axis y; intervals do not count, because they are cut off."""
    found = [point.mean for panel in panels for line in panel.lines.values() for point in line]
    more = [panel.rerun[0] for panel in panels if panel.rerun is not None]
    more += [panel.target for panel in panels if panel.target is not None]
    return found + more


def _find_limits(values: Sequence[float], log: bool, name: str) -> tuple[float, float]:
    low, high = min(values), max(values)
    if not log:
        span = (high - low) or abs(high) or 1.0
        return (0.0 if name == "x" else low - 0.12 * span), high + (0.05 if name == "x" else 0.12) * span
    if low <= 0:
        raise ConfigError(
            f"the axis {name} has the value {low:g}, which a logarithmic axis cannot show", where=f"log {name}",
            hint="draw it with a linear axis",
        )  # fmt: skip
    factor = (high / low) ** 0.12 if high > low else 2.0
    return low / factor, high * factor


def _draw_scales(
    axes: Any, limits: Sequence[tuple[float, float]], log: Sequence[str], across: str, heading: str
) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

    axes.grid(alpha=0.25)
    for name, axis, ends in (("x", axes.xaxis, limits[0]), ("y", axes.yaxis, limits[1])):
        getattr(axes, f"set_{name}scale")("log" if name in log else "linear")
        locator = LogLocator(subs=(1.0, 2.0, 5.0)) if name in log else MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10])
        getattr(axes, f"set_{name}lim")(*ends)
        axis.set_major_locator(FixedLocator([t for t in locator.tick_values(*ends) if ends[0] <= t <= ends[1]]))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))
    for text, at in ((across, (0.5, 0)),):
        axes.annotate(
            text,
            at,
            (0, 8 - _BOTTOM),
            xycoords="axes fraction",
            ha="center",
            color=colour("ink"),
            gid="across",
            **_TEXT,
        )
    axes.annotate(
        heading, (0, 1), (-_LEFT + 4, -2), xycoords="axes fraction", color=colour("ink"), rotation=90, va="top",
        gid="heading", **_TEXT,
    )  # fmt: skip


def _order_heads(heads: tuple[str, str]) -> tuple[str, str]:
    return heads if heads[0] else (heads[1], "")


def _draw_noise(axes: Any, panel: _Panel, ends: tuple[float, float], reference: str) -> list[tuple[Any, ...]]:
    """Draw the band of the reruns and the line of the reference; returns what has to be labelled."""
    labels: list[tuple[Any, ...]] = []
    grey = colour("muted")
    if panel.rerun is not None:
        centre, interval = panel.rerun
        low, high = np.clip(interval, *ends)
        axes.axhspan(low, high, color=grey, alpha=0.18, linewidth=0, gid="band", zorder=0)
        axes.plot(axes.get_xlim(), [centre, centre], color=grey, linewidth=1.2, gid="rerun", zorder=1)
        labels.append((None, centre, AGAIN, grey))
    if panel.target is not None:
        axes.plot(axes.get_xlim(), [panel.target] * 2, color=grey, dashes=(4, 3), linewidth=1.2, gid="target", zorder=1)
        labels.append((None, panel.target, reference, grey))
    return labels


def _draw_lines(
    axes: Any,
    panel: _Panel,
    styles: Mapping[str, int],
    limits: Sequence[tuple[float, float]],
    tips: dict[str, str],
    place: int,
) -> list[tuple[Any, ...]]:
    """Draw lines, intervals and points; returns what has to be labelled: the last point, the name, the colour."""
    labels: list[tuple[Any, ...]] = []
    for name, points in panel.lines.items():
        own = colour(f"curve_{styles[name] + 1}")
        marker = _MARKERS[styles[name]]
        axes.plot([p.passes for p in points], [p.mean for p in points], color=own, linewidth=1.6, gid="curve", zorder=3)
        for number, point in enumerate(points):
            if point.interval is not None:
                ends = np.clip(point.interval, *limits[1])
                axes.plot([point.passes] * 2, ends, color=own, linewidth=1.2, alpha=0.55, gid="interval", zorder=2)
            gid = f"point:{place}-{styles[name]}-{number}"
            tips[gid] = point.text()
            axes.plot(
                [point.passes], [point.mean], marker, markersize=6, markeredgewidth=0, color=own, gid=gid, zorder=4
            )
        labels.append((points[-1].passes, points[-1].mean, name, own))
    return labels


def _draw_labels(axes: Any, labels: Sequence[tuple[Any, ...]]) -> None:
    """Write the names right of the panel, at the height of the last points, without overlap; a thin line joins them."""
    to_axes = axes.transAxes.inverted()
    gap = 13 / _HEIGHT
    wanted = []
    for x, y, name, own in labels:
        at = to_axes.transform(axes.transData.transform((axes.get_xlim()[1] if x is None else x, y)))
        wanted.append((float(at[1]), float(at[0]), name, own))
    wanted.sort(key=lambda one: one[0])
    heights = spread_out([one[0] for one in wanted], gap)
    for (y, x, name, own), height in zip(wanted, heights, strict=True):
        axes.plot(
            [x, 1.03], [y, height], transform=axes.transAxes, color=own, linewidth=0.8, alpha=0.5, dashes=(1.5, 2),
            clip_on=False, gid="leader", zorder=1,
        )  # fmt: skip
        axes.annotate(
            name, (1.03, height), (3, 0), xycoords="axes fraction", va="center", color=own, gid="label", **_TEXT
        )


def spread_out(heights: Sequence[float], gap: float) -> list[float]:
    """Move ascending heights apart to at least `gap`, as little as a sweep up and a sweep down allow, below 1."""
    found: list[float] = []
    for height in heights:
        found.append(height if not found else max(height, found[-1] + gap))
    top = max(1.0, gap * (len(found) - 1))
    for place in range(len(found) - 1, -1, -1):
        found[place] = min(found[place], top)
        top = found[place] - gap
    return found


def _describe(panel: _Panel) -> str:
    """The points of a panel as text, for screen readers."""
    lines = [f"{name}: {'; '.join(point.text() for point in points)}" for name, points in panel.lines.items()]
    if panel.rerun is not None:
        centre, (low, high) = panel.rerun
        lines.append(f"{AGAIN}: {centre:.4g} [{low:.4g}, {high:.4g}]")
    if panel.target is not None:
        lines.append(f"reference: {panel.target:.4g}")
    return f"{', '.join(head for head in panel.heads if head)}: {'. '.join(lines)}."
