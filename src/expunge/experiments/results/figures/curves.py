"""Draw one score against the passes of the methods: a line for each entry of `curves`, with the noise of retraining."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from expunge.core.errors import ConfigError, unknown_name_hint
from expunge.core.figures import colour
from expunge.evaluation.facts import score_facts
from expunge.evaluation.seeds import mean, t_interval
from expunge.experiments.config.selections import matches, wanted_labels

from ..claims import cell_score
from ..summary import row_label
from .frame import draw_frame, head_score
from .lines import AGAIN, LINES, LinePoint, find_limits
from .panels import check_selection, group_panels


@dataclasses.dataclass(frozen=True)
class _Panel:
    heads: tuple[str, str]
    lines: Mapping[str, list[LinePoint]]
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
    heading, reference = head_score(results, score), str(results.get("reference", "the reference"))
    return draw_frame(
        panels, list(chosen), (AGAIN, reference), _collect_scores, functools.partial(_draw_noise, reference),
        find_limits(_collect_passes(panels), "x" in log, "x"), (f"passes / passes of {reference}", heading), log,
        title=f"{results['plan']['name']}: {heading} against passes", kind="curves", score=score, comment=comment,
        description=" ".join(map(_describe, panels)),
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
) -> list[LinePoint]:
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
        at = mean(passes) or 0.0
        points.append(LinePoint(f"{label}: passes {at:.3g}", at, mean(values) or 0.0, t_interval(values)))
    return sorted(points, key=lambda point: point.x)


def _collect_passes(panels: Sequence[_Panel]) -> list[float]:
    return [point.x for panel in panels for line in panel.lines.values() for point in line]


def _collect_scores(panels: Sequence[_Panel]) -> list[float]:
    """All means of an axis y; intervals do not count, because they are cut off."""
    found = [point.mean for panel in panels for line in panel.lines.values() for point in line]
    more = [panel.rerun[0] for panel in panels if panel.rerun is not None]
    more += [panel.target for panel in panels if panel.target is not None]
    return found + more


def _draw_noise(reference: str, axes: Any, panel: _Panel, ends: tuple[float, float]) -> list[tuple[Any, ...]]:
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


def _describe(panel: _Panel) -> str:
    """The points of a panel as text, for screen readers."""
    lines = [f"{name}: {'; '.join(point.text() for point in points)}" for name, points in panel.lines.items()]
    if panel.rerun is not None:
        centre, (low, high) = panel.rerun
        lines.append(f"{AGAIN}: {centre:.4g} [{low:.4g}, {high:.4g}]")
    if panel.target is not None:
        lines.append(f"reference: {panel.target:.4g}")
    return f"{', '.join(head for head in panel.heads if head)}: {'. '.join(lines)}."
