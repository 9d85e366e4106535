"""The panels of confidences and of densities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from markupsafe import Markup

from expunge.core.figures import add_axes, canvas, colour, render_svg
from expunge.core.show import plural
from expunge.evaluation.score import HISTOGRAM_PARTS
from expunge.report.values import Histogram

#: Labels of parts of the split that differ from their name in files.
PART_LABELS = {"non_members": "non-members"}
_STRIP, _GAP, _TOP, _LEFT, _RIGHT, _WIDTH = 50, 26, 20, 34, 6, 200


def _format_short(value: float) -> str:
    """Format a number with at most two decimals."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def draw_confidence_panel(
    label: str, confidence: Mapping[str, Histogram], reference: Mapping[str, Histogram] | None, identity: str
) -> Markup:
    """Draw the histograms of one model, one strip a part, with the outline of the reference.

    The vertical axis is the square root of the fraction of records. Most records are in the last bin; on a linear axis
    the tail would not be visible.

    Args:
        label: name of the model.
        confidence: histograms by part.
        reference: histograms of the reference by part, or None.
        identity: prefix of the ids in the SVG; unique in the page.
    """
    known = [part for part in HISTOGRAM_PARTS if part in confidence]
    present = [*known, *(part for part in confidence if part not in HISTOGRAM_PARTS)]
    with canvas(_WIDTH, _TOP + (_STRIP + _GAP) * len(present), 11.5) as figure:
        for place, part in enumerate(present):
            span = _WIDTH - _LEFT - _RIGHT
            axes = add_axes(figure, _LEFT, _TOP + (_STRIP + _GAP) * place, span, _STRIP, ["bottom"])
            _draw_strip(axes, part, confidence[part], reference.get(part) if reference else None)
            if place < len(present) - 1:
                axes.set_xticks([])
        words = "; ".join(f"{_get_label(part)}: {_describe_histogram(confidence[part])}" for part in present)
        title = f"{label}: confidence in the true label"
        return Markup(render_svg(figure, title=title, description=f"{words}.", identity=identity))


def _get_label(part: str) -> str:
    return PART_LABELS.get(part, part)


def _draw_strip(axes: Any, part: str, histogram: Histogram, other: Histogram | None) -> None:
    low, high = histogram.edges[0], histogram.edges[-1]
    axes.set_yscale("function", functions=(lambda y: np.sqrt(np.clip(y, 0, None)), np.square))
    axes.set_ylim(0, 1)
    axes.set_xlim(low, high)
    axes.set_yticks([0.1, 0.5], ["10 %", "50 %"])
    ticks = [low, (low + high) / 2, high]
    axes.set_xticks(ticks, [_format_short(tick) for tick in ticks])
    for label, side in zip(axes.get_xticklabels(), ("left", "center", "right"), strict=True):
        label.set_horizontalalignment(side)
    axes.grid(axis="y", dashes=(2, 3))
    axes.set_title(_get_label(part), loc="left")
    axes.set_title(f"n = {histogram.total}", loc="right", color=colour("muted"))
    if histogram.total:
        css = part if part in HISTOGRAM_PARTS else "retain"
        axes.stairs(histogram.fractions, histogram.edges, fill=True, color=colour(css), alpha=0.85)
    if other is not None and other.total:
        edge = {"edgecolor": colour("ink"), "linewidth": 1.3, "gid": "f-reference"}
        axes.stairs(other.fractions, other.edges, baseline=None, **edge)


def _describe_histogram(histogram: Histogram) -> str:
    if not histogram.total:
        return "no records"
    tail = sum(c for c, edge in zip(histogram.counts, histogram.edges[1:], strict=True) if edge <= 0.5 + 1e-9)
    last = histogram.counts[-1] / histogram.total
    return (
        f"{plural(histogram.total, 'record')}, {last:.0%} in the last bin "
        f"(from {_format_short(histogram.edges[-2])} on), {tail / histogram.total:.0%} at 0.5 or less"
    )


def choose_axis_end(highest: float) -> float:
    """Choose the end of a density axis: the smallest round density that is not below the highest one."""
    return next(end for end in (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0) if highest <= end or end == 1.0)


def _shorten(name: str, most: int = 16) -> str:
    name = name.removesuffix(".weight")
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-(most // 2) :]}"


def draw_density_bars(density: Mapping[str, float], label: str, identity: str) -> Markup:
    """Draw the density in % of each masked tensor as a bar, in the model's order.

    Args:
        density: density in [0, 1] by tensor name.
        label: names of the models with this mask.
        identity: prefix of the ids in the SVG; unique in the page.
    """
    width, left, right, row, top = 340, 116, 48, 22, 6
    end = choose_axis_end(max(density.values(), default=1.0))
    rows = range(len(density))
    with canvas(width, top + row * len(density) + 22, 11.5) as figure:
        axes = add_axes(figure, left, top, width - left - right, max(1, row * len(density)), ["left"])
        axes.set_xlim(0, end)
        axes.set_ylim(max(1, len(density)) - 0.5, -0.5)
        axes.set_xticks([0, end / 2, end], [f"{100 * end * part:g} %" for part in (0, 0.5, 1)])
        axes.grid(axis="x", dashes=(2, 3))
        axes.set_yticks(rows, [_shorten(name) for name in density])
        for tick in axes.yaxis.get_majorticklabels():
            tick.set(gid="f-mono", color=colour("ink"), fontsize=10.5)
        tips = {}
        for place, (name, value) in enumerate(density.items()):
            tips[f":{place}"] = f"{name}: {100 * value:.2f} %"
            axes.barh(place, min(1.0, max(0.0, value)), 12 / row, color=colour("retain"), gid=f":{place}")
            where = {"textcoords": "offset points", "va": "center", "color": colour("ink")}
            axes.annotate(f"{100 * value:.1f} %", (value, place), (5, 0), **where)
        words = "; ".join(f"{name} {100 * value:.1f} %" for name, value in density.items())
        title = f"Mask density by layer: {label}"
        return Markup(render_svg(figure, title=title, description=words, identity=identity, tips=tips))
