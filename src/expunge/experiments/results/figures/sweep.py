"""Draw one score over an axis of the plan: a line for every method, with the reference and its noise."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from expunge.core.errors import ConfigError, unknown_name_hint
from expunge.core.figures import colour
from expunge.evaluation.facts import score_facts
from expunge.evaluation.seeds import mean, t_interval
from expunge.experiments.config.selections import matches

from ..claims import cell_score
from ..groups import group_by_labels
from ..summary import make_sections, row_label
from .frame import draw_frame, head_score
from .lines import AGAIN, LINES, LinePoint
from .panels import check_selection, group_panels

FLOOR = "noise floor"
#: Roles of axes that a line can run over.
_ROLES = ("case", "sparsity")
_MARGIN = 0.25
#: Distance of two lines at a label.
_STEP = 0.05
_LABELS = 12


@dataclasses.dataclass(frozen=True)
class _Panel:
    """The lines of one panel; `floor` has a place and a noise floor for every label that has one."""

    heads: tuple[str, str]
    lines: Mapping[str, list[LinePoint]]
    reference: list[LinePoint]
    again: list[LinePoint]
    floor: list[tuple[int, float]]

    def everything(self) -> dict[str, list[LinePoint]]:
        return {**self.lines, AGAIN: self.again}


def render_sweep(
    results: Mapping[str, Any],
    score: str,
    over: str,
    *,
    only: Mapping[str, Sequence[str]] | None = None,
    log: Sequence[str] = (),
    comment: str = "",
) -> str:
    """Draw one score of a plan over the labels of one of its axes as an SVG, such as sparsities or forget-set sizes.

    There is a panel for every case and sparsity, as far as they are not on the axis, and a line for every method. The
    labels are in the order of the plan, at equal distances, and at each the methods stand side by side. A point is the
    mean over the seeds, the bar its 95 % t interval, cut off at the edge of the panel. Grey: the cells that rerun the
    reference ("retrained again"); the reference itself, dashed, for scores that it has a value of, with the noise floor
    as a band around it; for disparities, the noise floor as a line.

    Args:
        results: see `read_results`.
        score: name of a score, or `gap:NAME` for its distance to the reference.
        over: an axis of the plan.
        only: axis to the labels to show; axes that are not named show all labels. The reference and its reruns are
            drawn beside any choice of methods.
        log: `y` for a logarithmic axis of the score.
        comment: written into the file as an XML comment.

    Returns:
        The SVG file as a string.

    Raises:
        ConfigError: an axis, a label or the score is not in the results; the axis is that of methods or seeds; there
            are too many methods; or a number is not positive and its axis is logarithmic.

    >>> from expunge.experiments import render_sweep
    >>> cells = [
    ...     {"labels": {"size": size, "method": method, "seed": str(seed)}, "method": method, "sparsity": 0.0,
    ...      "reference": 0, "is_reference": method == "Retrain", "state": "finished", "scores": {"UA": value + seed}}
    ...     for size, method, value in (("1 %", "Retrain", 9.0), ("1 %", "FT", 2.0), ("10 %", "FT", 3.0))
    ...     for seed in (0, 1)
    ... ]
    >>> axes = [{"name": "size", "role": "case", "labels": ["1 %", "10 %"]},
    ...         {"name": "method", "role": "method", "labels": ["Retrain", "FT"]},
    ...         {"name": "seed", "role": "replicate", "labels": ["0", "1"]}]
    >>> svg = render_sweep({"plan": {"name": "small"}, "axes": axes, "cells": cells}, "UA", "size")
    >>> svg.startswith("<svg "), "FT, 10 %, 3.5" in svg
    (True, True)
    """
    if list(log) not in ([], ["y"]):
        raise ConfigError(
            "only the axis y can be logarithmic", where="log", hint=f"the axis x has the labels of {over}"
        )
    places = _find_places(results, over, only or {})
    panels = _make_panels(results, score, over, places, only or {})
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    if len(names) > LINES:
        hint = "choose some with --only method=NAME"
        raise ConfigError(f"there are {len(names)} methods, more than {LINES}", where="method", hint=hint)
    panels = [_spread(panel, names) for panel in panels]
    heading, reference = head_score(results, score), str(results.get("reference", "the reference"))
    return draw_frame(
        panels, names, (AGAIN, FLOOR, reference), _collect_scores, functools.partial(_draw_reference, reference),
        (-_MARGIN, len(places) - 1 + _MARGIN), (over, heading), log, [shorten(label) for label in places],
        title=f"{results['plan']['name']}: {heading} over {over}", kind="sweep", score=score, comment=comment,
        description=" ".join(_describe(panel, reference) for panel in panels),
    )  # fmt: skip


def _spread(panel: _Panel, names: Sequence[str]) -> _Panel:
    """The panel with its lines side by side, so that the bars of one label do not cover each other."""
    step = min(_STEP, 2 * _MARGIN * 0.8 / max(1, len(names)))
    shift = {name: step * (place - (len(names) - 1) / 2) for place, name in enumerate(names)}
    lines = {
        name: [dataclasses.replace(point, x=point.x + shift[name]) for point in points]
        for name, points in panel.lines.items()
    }
    return dataclasses.replace(panel, lines=lines)


def shorten(label: str) -> str:
    """A label as it fits below an axis."""
    return label if len(label) <= _LABELS else f"{label[: _LABELS - 1]}…"


def _find_places(results: Mapping[str, Any], over: str, only: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """The labels of the axis that are shown, and their places."""
    axes = {axis["name"]: axis for axis in results["axes"]}
    known = [name for name, axis in axes.items() if axis["role"] in _ROLES]
    if over not in known:
        what = f"the axis {over!r} has methods or seeds" if over in axes else f"the plan has no axis {over!r}"
        hint = unknown_name_hint(over, known) if over not in axes else f"one of: {', '.join(known) or 'none'}"
        raise ConfigError(what, where="over", hint=hint)
    chosen = check_selection(results, only).get(over)
    labels = [label for label in axes[over]["labels"] if chosen is None or label in chosen]
    return {label: place for place, label in enumerate(labels)}


def _make_panels(
    results: Mapping[str, Any], score: str, over: str, places: Mapping[str, int], only: Mapping[str, Sequence[str]]
) -> list[_Panel]:
    every, rerun = results["cells"], results.get("rerun")
    roles = {axis["name"]: axis["role"] for axis in results["axes"]}
    chosen = check_selection(results, only)
    always = {axis: labels for axis, labels in chosen.items() if roles[axis] != "method"}
    cells = [cell for cell in every if matches(cell["labels"], always if _is_retrained(cell, rerun) else chosen)]
    cells = [cell for cell in cells if cell_score(cell, every, score) is not None]
    if not cells:
        known = sorted({name for cell in every for name in cell["scores"]})
        raise ConfigError(f"no cell has the score {score!r}", hint=unknown_name_hint(score, known))
    floors = {} if score.startswith("gap:") else _find_floors(results, score)
    alone = all(cell["is_reference"] for cell in cells)  # leakage, for example: no method is compared with a reference
    panels = []
    for heads, members in _group(results, cells, roles, over).items():
        groups: dict[str, dict[int, list[Mapping[str, Any]]]] = {}
        for cell in members:
            if alone or not cell["is_reference"] or score_facts(score.removeprefix("gap:")).compared:
                kind = "" if cell["is_reference"] and not alone else row_label(cell, roles, "method")
                kind = AGAIN if not cell["is_reference"] and _is_retrained(cell, rerun) else kind
                groups.setdefault(kind, {}).setdefault(places[cell["labels"][over]], []).append(cell)
        lines = {name: _make_points(name, own, every, score, list(places)) for name, own in groups.items()}
        reference, again = ([] if score.startswith("gap:") else lines.get("", [])), lines.get(AGAIN, [])
        lines = {name: points for name, points in lines.items() if name not in ("", AGAIN)}
        floor: dict[int, float] = {}
        for cell in members:
            key = _key(cell, roles)
            if key in floors:
                floor[places[cell["labels"][over]]] = floors[key]
        if lines:
            panels.append(_Panel(heads, lines, reference, again, sorted(floor.items())))
    if not panels:
        raise ConfigError(f"no method beside the reference has the score {score!r}", hint="choose another score")
    return panels


def _is_retrained(cell: Mapping[str, Any], rerun: str | None) -> bool:
    """Whether it is the reference or a rerun of it, which are drawn beside any choice of methods."""
    return bool(cell["is_reference"]) or (rerun is not None and rerun in cell["labels"].values())


def _group(
    results: Mapping[str, Any], cells: Sequence[Mapping[str, Any]], roles: Mapping[str, str], over: str
) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """Cells by the case and the sparsity of their panel, without the axis that the lines run over."""
    axes = [axis for axis in results["axes"] if axis["name"] != over]
    if roles[over] != "sparsity":
        return group_panels({**results, "axes": axes}, cells, roles)
    cases = [axis for axis in axes if axis["role"] == "case"]
    return {(", ".join(choice), ""): list(own) for choice, own in group_by_labels(cells, cases)}


def _key(cell: Mapping[str, Any], roles: Mapping[str, str]) -> tuple[Any, ...]:
    case = tuple((axis, label) for axis, label in sorted(cell["labels"].items()) if roles[axis] == "case")
    return case, row_label(cell, roles, "sparsity")


def _find_floors(results: Mapping[str, Any], score: str) -> dict[tuple[Any, ...], float]:
    """The noise floors of a score by case and sparsity, as the tables have them."""
    sections = make_sections({**results, "columns": [score]})
    return {
        (tuple(sorted(section.case.items())), sparsity): floors[score]
        for section in sections
        for sparsity, floors in section.floor.items()
        if score in floors
    }


def _make_points(
    name: str,
    groups: Mapping[int, Sequence[Mapping[str, Any]]],
    cells: Sequence[Mapping[str, Any]],
    score: str,
    labels: Sequence[str],
) -> list[LinePoint]:
    points = []
    for place, own in sorted(groups.items()):
        values = [value for cell in own if (value := cell_score(cell, cells, score)) is not None]
        points.append(LinePoint(f"{name}, {labels[place]}", place, mean(values) or 0.0, t_interval(values)))
    return points


def _collect_scores(panels: Sequence[_Panel]) -> list[float]:
    """All means of an axis y; intervals do not count, because they are cut off."""
    found = [point.mean for panel in panels for line in panel.everything().values() for point in line]
    found += [point.mean for panel in panels for point in panel.reference]
    return found + [floor for panel in panels if not panel.reference for _, floor in panel.floor]


def _draw_reference(reference: str, axes: Any, panel: _Panel, ends: tuple[float, float]) -> list[tuple[Any, ...]]:
    """Draw the reference, its noise and the second retrained model; returns what has to be labelled."""
    labels: list[tuple[Any, ...]] = []
    grey, floor = colour("muted"), dict(panel.floor)
    for gid, name, points, style in (
        ("again", AGAIN, panel.again, {}),
        ("target", reference, panel.reference, {"dashes": (4, 3)}),
    ):
        if points:
            x, y = [point.x for point in points], [point.mean for point in points]
            axes.plot(x, y, color=grey, linewidth=1.2, gid=gid, zorder=1, **style)
            labels.append((x[-1], y[-1], name, grey))
    if panel.reference:
        band = [(p.x, p.mean, floor[round(p.x)]) for p in panel.reference if round(p.x) in floor]
        if len(band) > 1:
            at, centre, noise = (np.array(numbers) for numbers in zip(*band, strict=True))
            low, high = np.clip(centre - noise, *ends), np.clip(centre + noise, *ends)
            around = np.concatenate([at, at[::-1]]), np.concatenate([low, high[::-1]])
            axes.fill(*around, color=grey, alpha=0.18, linewidth=0, gid="band", zorder=0)
    elif panel.floor and not panel.again:
        places, floors = zip(*panel.floor, strict=True)
        axes.plot(places, floors, color=grey, linewidth=1.2, gid="floor", zorder=1)
        labels.append((places[-1], floors[-1], FLOOR, grey))
    return labels


def _describe(panel: _Panel, reference: str) -> str:
    """The points of a panel as text, for screen readers."""
    lines = {**panel.lines, AGAIN: panel.again, reference: panel.reference}
    found = [f"{name}: {'; '.join(point.text() for point in points)}" for name, points in lines.items() if points]
    if panel.floor:
        found.append(f"{FLOOR}: {'; '.join(f'{value:.4g}' for _, value in panel.floor)}")
    return f"{', '.join(head for head in panel.heads if head)}: {'. '.join(found)}."
