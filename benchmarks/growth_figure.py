"""Draw benchmarks/results/growth.json as docs/figures/growth.svg: `python benchmarks/growth_figure.py`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from expunge.core.figures import add_axes, canvas, colour, render_svg

ROOT = Path(__file__).parents[1]
WIDTH, HEIGHT, LEFT, TOP, GAP = 200, 150, 50, 40, 76
COLOURS = {
    "ink": "#767676", "muted": "#767676", "line": "#999999", "curve_1": "#2d7dbf", "curve_2": "#c05c22",
    "curve_3": "#288950",
}  # fmt: skip
Lines = Mapping[str, Callable[[Mapping[str, Any]], float]]
#: Title of a panel, unit of its numbers, its rows in the result, and its lines.
PANELS: Sequence[tuple[str, str, str, Lines]] = (
    (
        "CPU time a cell", "ms", "cells",
        {
            "whole run": lambda row: row["cpu_milliseconds_a_cell"]["run"],
            "status": lambda row: row["cpu_milliseconds_a_cell"]["status"],
            "driver": lambda row: row["driver_cpu_milliseconds_a_cell"],
        },
    ),
    (
        "CPU time over records", "s", "records",
        {
            "split": lambda row: row["cpu_seconds"]["split"],
            "request of a tenth": lambda row: row["cpu_seconds"]["request"],
            "apply": lambda row: row["cpu_seconds"]["apply"],
        },
    ),
    (
        "one request after n", "ms, kB", "requests",
        {
            "CPU time, ms": lambda row: 1e3 * row["cpu_seconds_of_the_last"],
            "outcome.json, kB": lambda row: row["bytes"]["outcome.json"] / 1e3,
            "trained.json, kB": lambda row: row["bytes"]["trained.json"] / 1e3,
        },
    ),
)  # fmt: skip


def draw(results: Mapping[str, Any]) -> str:
    """The figure: a panel for cells, records and requests; both axes of each are logarithmic."""
    panels = [panel for panel in PANELS if results.get(panel[2])]
    words = []
    with canvas(LEFT + len(panels) * (WIDTH + GAP), TOP + HEIGHT + 46) as figure:
        for place, (title, unit, part, lines) in enumerate(panels):
            axes = add_axes(figure, LEFT + place * (WIDTH + GAP), TOP, WIDTH, HEIGHT, ("left", "bottom"))
            axes.set_title(f"{title} ({unit})")
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.minorticks_off()
            axes.set_xlabel(part)
            axes.grid(alpha=0.25)
            rows = results[part]
            for number, (name, read) in enumerate(lines.items(), 1):
                own, values = colour(f"curve_{number}"), [max(1e-6, read(row)) for row in rows]
                sizes = [row[part] for row in rows]
                axes.plot(
                    sizes, values, color=own, linewidth=1.6, marker="o", markersize=4, gid=f"curve:{part}{number}"
                )
                axes.annotate(
                    name, (sizes[-1], values[-1]), xytext=(-2, 5), textcoords="offset points", color=own, ha="right",
                    annotation_clip=False,
                )  # fmt: skip
                words.append(
                    f"{title}, {name}: {values[0]:.3g} at {sizes[0]:,} {part}, {values[-1]:.3g} at {sizes[-1]:,}"
                )
        return render_svg(
            figure, title="Growth of what expunge itself does", description="; ".join(words), identity="growth",
            colours=COLOURS, comment="benchmarks/results/growth.json",
        )  # fmt: skip


def main() -> None:
    results = json.loads((ROOT / "benchmarks" / "results" / "growth.json").read_text())
    (ROOT / "docs" / "figures" / "growth.svg").write_text(draw(results))


if __name__ == "__main__":
    main()
