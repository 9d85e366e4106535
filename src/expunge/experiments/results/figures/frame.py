"""The frame of a figure of lines: its panels in a grid, with one axis of the score for the panels of a case."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from expunge.core.figures import canvas, render_svg

from ..summary import column_headings
from .lines import (
    COLOURS,
    LinePoint,
    add_panel,
    draw_heads,
    draw_labels,
    draw_lines,
    draw_scales,
    find_limits,
    lay_out,
)


class Panel(Protocol):
    """What every panel has: its case and sparsity, and its lines by method."""

    @property
    def heads(self) -> tuple[str, str]: ...
    @property
    def lines(self) -> Mapping[str, list[LinePoint]]: ...


P = TypeVar("P", bound=Panel)


def head_score(results: Mapping[str, Any], score: str) -> str:
    """The heading of a score or of its gap (`gap:NAME`), with its unit."""
    name = score.removeprefix("gap:")
    heading = column_headings({**results, "columns": [name]})[name]
    return f"gap of {heading}" if score.startswith("gap:") else heading


def draw_frame(
    panels: Sequence[P],
    names: Sequence[str],
    others: Sequence[str],
    collect_scores: Callable[[Sequence[P]], list[float]],
    draw_noise: Callable[[Any, P, tuple[float, float]], list[tuple[Any, ...]]],
    across: tuple[float, float],
    titles: tuple[str, str],
    log: Sequence[str],
    ticks: Sequence[str] = (),
    *,
    title: str,
    description: str,
    kind: str,
    score: str,
    comment: str,
) -> str:
    """Draw the panels as an SVG.

    Args:
        panels: in the order of reading.
        names: of the lines; a line has the same colour in all panels.
        others: further labels beside the lines, for which there has to be room.
        collect_scores: the numbers that an axis of the score has to hold, of the panels of one case.
        draw_noise: draws what is behind the lines, within the limits of the score; returns its labels.
        across: the limits of the axis x.
        titles: of the axes x and y.
        log: axes with a logarithmic scale: `x`, `y`.
        ticks: the labels of the places 0, 1, ... of the axis x; empty: numbers.
        title: of the file.
        description: of the file, for screen readers.
        kind: of the figure; with a hash of title, score and comment, it identifies the file.
        score: name of the score.
        comment: written into the file as an XML comment.
    """
    styles = {name: place for place, name in enumerate(names)}
    columns = len(dict.fromkeys(panel.heads[1] for panel in panels))
    layout = lay_out(len(panels), columns, (*names, *others))
    tips: dict[str, str] = {}
    with canvas(round(layout[0] * layout[1]), -(-len(panels) // layout[0]) * layout[2]) as figure:
        for place, panel in enumerate(panels):
            axes = add_panel(figure, place, layout)
            case = [other for other in panels if other.heads[0] == panel.heads[0]]
            limits = across, find_limits(collect_scores(case), "y" in log, "y")
            draw_scales(axes, limits, log, *titles, ticks)
            draw_heads(axes, panel.heads)
            ends = draw_noise(axes, panel, limits[1])
            ends += draw_lines(axes, panel.lines, styles, limits, tips, place)
            draw_labels(axes, ends)
        digest = hashlib.sha256(f"{title}\n{score}\n{comment}".encode()).hexdigest()
        return render_svg(
            figure, title=title, description=description, identity=f"{kind}-{digest[:8]}", colours=COLOURS,
            comment=comment, tips=tips,
        )  # fmt: skip
