"""Lines of points with intervals, their axes and their names: shared by curves over passes and lines over an axis.

The colours are readable on light and on dark pages, because an image cannot adapt to the page it is shown on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from expunge.core.errors import ConfigError
from expunge.core.figures import add_axes, colour
from expunge.core.show import repr_fields

#: Lines of one figure: it has as many colours.
LINES = 8
WIDTH, HEIGHT, TOP, LEFT, BOTTOM, GAP = 250, 190, 44, 62, 46, 10
COLOURS = {
    "ink": "#767676", "muted": "#767676", "line": "#999999",
    "curve_1": "#2d7dbf", "curve_2": "#c05c22", "curve_3": "#288950", "curve_4": "#9960c3", "curve_5": "#ca4889",
    "curve_6": "#19858f", "curve_7": "#8a781d", "curve_8": "#c55551",
}  # fmt: skip
#: The label of the cells that rerun the reference.
AGAIN = "retrained again"
#: Cases in one row, if there is one sparsity only.
_SIDE_BY_SIDE = 2
_MARKERS = "osD^vP*X"
_TEXT: dict[str, Any] = {"textcoords": "offset points", "annotation_clip": False}


@dataclasses.dataclass(frozen=True)
class LinePoint:
    """One point of a line: the cells of one method that differ only in their seeds.

    Attributes:
        name: what it is, with its place on the axis x: `FT, 2 epochs: passes 0.1`.
        x: its place.
        mean: mean of the score over the seeds.
        interval: its 95 % t interval; None with fewer than two seeds.
    """

    name: str
    x: float
    mean: float
    interval: tuple[float, float] | None

    __repr__ = repr_fields

    def text(self) -> str:
        """`FT, 2 epochs: passes 0.1, 0.904 [0.87, 0.94]`."""
        ends = "" if self.interval is None else f" [{self.interval[0]:.4g}, {self.interval[1]:.4g}]"
        return f"{self.name}, {self.mean:.4g}{ends}"


def lay_out(panels: int, columns: int, names: Sequence[str]) -> tuple[int, float, float]:
    """Columns of panels, and width and height of one with its names beside; one column becomes two where it can."""
    right = 24 + 6.1 * max(map(len, names))
    columns = min(_SIDE_BY_SIDE, panels) if columns == 1 else columns
    return columns, LEFT + WIDTH + right + GAP, TOP + HEIGHT + BOTTOM


def add_panel(figure: Any, place: int, layout: tuple[int, float, float]) -> Any:
    """Add the axes of a panel."""
    columns, width, height = layout
    return add_axes(
        figure, (place % columns) * width + LEFT, (place // columns) * height + TOP, WIDTH, HEIGHT, ("left", "bottom")
    )


def draw_heads(axes: Any, heads: tuple[str, str]) -> None:
    """Write the case and the sparsity of a panel above it."""
    first = heads if heads[0] else (heads[1], "")
    for text, up, weight in zip(first, (28, 12), ("bold", "normal"), strict=True):
        axes.annotate(
            text, (0, 1), (0, up), xycoords="axes fraction", fontweight=weight, gid="head", color=colour("ink"), **_TEXT
        )


def find_limits(values: Sequence[float], log: bool, name: str) -> tuple[float, float]:
    """The ends of an axis that shows these values.

    Raises:
        ConfigError: a value is not positive, and the axis is logarithmic.
    """
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


def draw_scales(
    axes: Any,
    limits: Sequence[tuple[float, float]],
    log: Sequence[str],
    across: str,
    heading: str,
    labels: Sequence[str] = (),
) -> None:
    """Draw both scales and their names; `labels` are those of the places 0, 1, ... of the axis x."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

    axes.grid(alpha=0.25)
    for name, axis, ends in (("x", axes.xaxis, limits[0]), ("y", axes.yaxis, limits[1])):
        getattr(axes, f"set_{name}scale")("log" if name in log else "linear")
        locator = LogLocator(subs=(1.0, 2.0, 5.0)) if name in log else MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10])
        getattr(axes, f"set_{name}lim")(*ends)
        axis.set_major_locator(FixedLocator([t for t in locator.tick_values(*ends) if ends[0] <= t <= ends[1]]))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))
    if labels:
        axes.set_xticks(range(len(labels)), labels)
    axes.annotate(
        across, (0.5, 0), (0, 8 - BOTTOM), xycoords="axes fraction", ha="center", color=colour("ink"), gid="across",
        **_TEXT,
    )  # fmt: skip
    axes.annotate(
        heading, (0, 1), (-LEFT + 4, -2), xycoords="axes fraction", color=colour("ink"), rotation=90, va="top",
        gid="heading", **_TEXT,
    )  # fmt: skip


def draw_lines(
    axes: Any,
    lines: Mapping[str, Sequence[LinePoint]],
    styles: Mapping[str, int],
    limits: Sequence[tuple[float, float]],
    tips: dict[str, str],
    place: int,
) -> list[tuple[Any, ...]]:
    """Draw lines, intervals and points; returns what has to be labelled: the last point, the name, the colour."""
    labels: list[tuple[Any, ...]] = []
    for name, points in lines.items():
        own = colour(f"curve_{styles[name] + 1}")
        marker = _MARKERS[styles[name]]
        axes.plot([p.x for p in points], [p.mean for p in points], color=own, linewidth=1.6, gid="curve", zorder=3)
        for number, point in enumerate(points):
            if point.interval is not None:
                ends = np.clip(point.interval, *limits[1])
                axes.plot([point.x] * 2, ends, color=own, linewidth=1.2, alpha=0.55, gid="interval", zorder=2)
            gid = f"point:{place}-{styles[name]}-{number}"
            tips[gid] = point.text()
            axes.plot([point.x], [point.mean], marker, markersize=6, markeredgewidth=0, color=own, gid=gid, zorder=4)
        labels.append((points[-1].x, points[-1].mean, name, own))
    return labels


def draw_labels(axes: Any, labels: Sequence[tuple[Any, ...]]) -> None:
    """Write the names right of the panel, at the height of the last points, without overlap; a thin line joins them."""
    to_axes = axes.transAxes.inverted()
    gap = 13 / HEIGHT
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
