"""Ranks of methods over settings and seeds, from result files: mean ranks with bootstrap intervals, and their figure.

A setting is a case at one sparsity in one plan. In each setting, the methods are ranked by a score for every seed.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.core.errors import ConfigError, unknown_name_hint
from expunge.core.figures import add_axes, canvas, colour, render_svg
from expunge.core.seeds import numpy_generator
from expunge.core.show import plural, repr_fields
from expunge.evaluation.facts import score_facts
from expunge.evaluation.seeds import mean

from .claims import cell_score
from .figures.panels import check_selection
from .groups import group_by_labels
from .summary import make_sections, row_label

DRAWS, LEVEL = 2_000, 0.95
_ROW, _TOP, _PANEL, _BOTTOM, _RIGHT = 17, 44, 330, 34, 150
_COLOURS = {"ink": "#767676", "muted": "#767676", "line": "#999999", "mean": "#2a78b8", "reference": "#c2571a"}
_TEXT: dict[str, Any] = {"textcoords": "offset points", "annotation_clip": False, "color": colour("ink")}


@dataclasses.dataclass(frozen=True)
class Ranked:
    """The ranks of one method.

    Attributes:
        method: its row label.
        rank: mean over settings and seeds; 1 is the best.
        interval: 95 % bootstrap interval of the mean: settings are drawn, and seeds in each.
        value: mean score; None if no cell finished.
        passes: mean passes over the retained records; None if no cell finished.
        failed: number of cells that failed; each has the last rank.
    """

    method: str
    rank: float
    interval: tuple[float, float]
    value: float | None
    passes: float | None
    failed: int

    __repr__ = repr_fields


@dataclasses.dataclass(frozen=True)
class Ranking:
    """The ranks of all methods that every setting has.

    Attributes:
        score: what they are ranked by.
        rows: the methods, the best first.
        noise: mean rank that the noise of retraining would have; None if it was not measured.
        settings, seeds: their numbers; of seeds, the largest of all settings.
        left_out: methods that not all settings have.
    """

    score: str
    rows: tuple[Ranked, ...]
    noise: float | None
    settings: int
    seeds: int
    left_out: tuple[str, ...]

    __repr__ = repr_fields


def rank_methods(
    results: Sequence[Mapping[str, Any]],
    score: str = "Disparity average",
    *,
    only: Mapping[str, Sequence[str]] | None = None,
) -> Ranking:
    """Rank the methods of one or several result files.

    Equal scores have their average rank; a failed cell is ranked last. The rank of the noise is that of a second
    retrained model with another order of records (`rerun` of the plan), or else of the noise floor of the setting,
    among the methods.

    Args:
        results: see `read_results`; several plans may share methods.
        score: name of a score with a direction.
        only: axis to the labels to rank; the references and their reruns are always used.

    Raises:
        ConfigError: the score has no direction or no value; an axis or a label is not in the results; or no method is
            in every setting.

    >>> cells = [
    ...     {"labels": {"method": method, "seed": str(seed)}, "method": method, "sparsity": 0.0, "reference": 3 * seed,
    ...      "is_reference": method == "Retrain", "state": "finished", "cost": {"passes": 2.0},
    ...      "scores": {"Disparity average": value + seed}}
    ...     for seed in (0, 1) for method, value in (("Retrain", 0.0), ("FT", 3.0), ("GA", 1.0))
    ... ]
    >>> axes = [{"name": "method", "role": "method", "labels": ["Retrain", "FT", "GA"]},
    ...         {"name": "seed", "role": "replicate", "labels": ["0", "1"]}]
    >>> found = rank_methods([{"plan": {"name": "small"}, "axes": axes, "cells": cells}])
    >>> [(row.method, row.rank) for row in found.rows], found.settings
    ([('GA', 1.0), ('FT', 2.0)], 1)
    """
    direction = score_facts(score).direction
    if direction not in ("lower", "higher"):
        raise ConfigError(f"{score} has no direction, so methods cannot be ranked by it", where="score")
    settings = [setting for one in results for setting in _find_settings(one, score, only or {})]
    names = [set(setting.cells) for setting in settings]
    common = set.intersection(*names) if names else set()
    if not common:
        raise ConfigError(f"no method has {score} in every setting", hint=unknown_name_hint(score, []))
    methods = [name for name in settings[0].cells if name in common]
    sign = 1.0 if direction == "lower" else -1.0
    tables, noises = [], []
    for setting in settings:
        ranks, noise = _rank_setting(setting, methods, sign)
        tables.append(ranks)
        noises += noise
    intervals = _bootstrap(tables)
    rows = []
    for place, method in enumerate(methods):
        cells = [cell for setting in settings for cell in setting.cells[method].values()]
        values = [value for cell in cells if (value := cell.value) is not None]
        passes = [cell.passes for cell in cells if cell.passes is not None]
        rank = float(np.mean([np.mean(table[:, place]) for table in tables]))
        failed = sum(cell.value is None for cell in cells)
        rows.append(Ranked(method, rank, intervals[place], mean(values), mean(passes), failed))
    rows.sort(key=lambda row: row.rank)
    left_out = dict.fromkeys(name for setting in settings for name in setting.cells if name not in common)
    seeds = max(len(table) for table in tables)
    return Ranking(score, tuple(rows), mean(noises), len(settings), seeds, tuple(left_out))


@dataclasses.dataclass(frozen=True)
class _RankedCell:
    value: float | None
    passes: float | None


@dataclasses.dataclass(frozen=True)
class _Setting:
    """One setting: method to replicate to cell, and the score of the noise by replicate."""

    cells: Mapping[str, Mapping[tuple[str, ...], _RankedCell]]
    noise: Mapping[tuple[str, ...], float]


def _find_settings(results: Mapping[str, Any], score: str, only: Mapping[str, Sequence[str]]) -> list[_Setting]:
    roles = {axis["name"]: axis["role"] for axis in results["axes"]}
    chosen = check_selection(results, {name: labels for name, labels in only.items() if name in roles})
    cases = [axis for axis in results["axes"] if axis["role"] == "case"]
    replicates = [name for name, role in roles.items() if role == "replicate"]
    floors = {tuple(section.case.values()): section.floor for section in make_sections(results)}
    found = []
    for case, members in group_by_labels(results["cells"], cases):
        columns = dict.fromkeys(row_label(cell, roles, "sparsity") for cell in members)
        for column in columns:
            cells: dict[str, dict[tuple[str, ...], _RankedCell]] = {}
            noise: dict[tuple[str, ...], float] = {}
            floor = floors[case].get(column, {}).get(score)
            for cell in members:
                if row_label(cell, roles, "sparsity") != column or cell["state"] == "missing":
                    continue
                seed = tuple(cell["labels"][name] for name in replicates)
                value = cell_score(cell, results["cells"], score)
                if cell["is_reference"]:
                    if floor is not None:
                        noise.setdefault(seed, floor)
                elif results.get("rerun") in cell["labels"].values():
                    if value is not None:
                        noise[seed] = value
                elif all(cell["labels"][name] in labels for name, labels in chosen.items()):
                    passes = cell.get("cost", {}).get("passes")
                    own = cells.setdefault(row_label(cell, roles, "method"), {})
                    own[seed] = _RankedCell(value, passes if value is not None else None)
            if cells:
                found.append(_Setting(cells, noise))
    return found


def _rank_setting(setting: _Setting, methods: Sequence[str], sign: float) -> tuple[NDArray[np.float64], list[float]]:
    """The ranks in one setting, one row a seed that all methods have; and the ranks of the noise."""
    seeds = [s for s in setting.cells[methods[0]] if all(s in setting.cells[method] for method in methods)]
    if not seeds:
        raise ConfigError("the methods have no seed in common", hint="finish the plan, or choose methods with --only")
    ranks, noise = [], []
    for seed in seeds:
        found = [setting.cells[method][seed].value for method in methods]
        values = np.asarray([np.inf if value is None else sign * value for value in found])
        below, equal = values[None] < values[:, None], values[None] == values[:, None]
        ranks.append(1 + below.sum(axis=1) + (equal.sum(axis=1) - 1) / 2)
        if seed in setting.noise:
            level = sign * setting.noise[seed]
            noise.append(float(1 + (values < level).sum() + (values == level).sum() / 2))
    return np.asarray(ranks, dtype=np.float64), noise


def _bootstrap(tables: Sequence[NDArray[np.float64]]) -> list[tuple[float, float]]:
    """95 % percentile intervals of mean ranks: settings are drawn with replacement, and seeds in each of them."""
    generator = numpy_generator(0, "ranks")
    draws = np.empty((DRAWS, tables[0].shape[1]))
    for number in range(DRAWS):
        chosen = generator.integers(len(tables), size=len(tables))
        means = [tables[i][generator.integers(len(tables[i]), size=len(tables[i]))].mean(axis=0) for i in chosen]
        draws[number] = np.mean(means, axis=0)
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return [(float(a), float(b)) for a, b in zip(low, high, strict=True)]


def render_rank_table(ranking: Ranking) -> str:
    """The ranks as a Markdown table: method, mean rank with its interval, mean score, passes.

    Args:
        ranking: see `rank_methods`.

    >>> from expunge.experiments import Ranked, Ranking, render_rank_table
    >>> row = Ranked("FT", 1.5, (1.0, 2.0), 3.25, 10.0, failed=0)
    >>> print(render_rank_table(Ranking("Disparity average", (row,), 1.0, settings=2, seeds=3, left_out=())))
    | Method | mean rank | 95 % interval | Disparity average | passes |
    |---|---:|---:|---:|---:|
    | *retrained again* | 1.0 | | | |
    | FT | 1.5 | 1.0 to 2.0 | 3.25 | 10.0 |
    """
    lines = [f"| Method | mean rank | 95 % interval | {ranking.score} | passes |", "|---|---:|---:|---:|---:|"]
    marked = ranking.noise is None
    for row in ranking.rows:
        if not marked and ranking.noise is not None and ranking.noise < row.rank:
            lines.append(f"| *retrained again* | {ranking.noise:.1f} | | | |")
            marked = True
        value = "-" if row.value is None else f"{row.value:.2f}"
        passes = "-" if row.passes is None else f"{row.passes:.1f}"
        failed = f" ({row.failed} failed)" if row.failed else ""
        low, high = row.interval
        lines.append(f"| {row.method}{failed} | {row.rank:.1f} | {low:.1f} to {high:.1f} | {value} | {passes} |")
    if not marked and ranking.noise is not None:
        lines.append(f"| *retrained again* | {ranking.noise:.1f} | | | |")
    return "\n".join(lines)


def render_ranks(
    results: Sequence[Mapping[str, Any]],
    score: str = "Disparity average",
    *,
    only: Mapping[str, Sequence[str]] | None = None,
    comment: str = "",
) -> str:
    """Draw mean ranks as an SVG: a row for every method, the best first, with passes and mean score beside.

    The dot is the mean rank, the bar its bootstrap interval, the dashed line the rank of the noise of retraining.

    Args:
        results: see `rank_methods`; also the next two.
        score: what the methods are ranked by.
        only: axis to the labels to rank.
        comment: written into the file as an XML comment.

    Raises:
        ConfigError: see `rank_methods`.

    >>> cells = [
    ...     {"labels": {"method": method, "seed": str(seed)}, "method": method, "sparsity": 0.0, "reference": 3 * seed,
    ...      "is_reference": method == "Retrain", "state": "finished", "cost": {"passes": 2.0},
    ...      "scores": {"Disparity average": value + seed}}
    ...     for seed in (0, 1) for method, value in (("Retrain", 0.0), ("FT", 3.0), ("GA", 1.0))
    ... ]
    >>> axes = [{"name": "method", "role": "method", "labels": ["Retrain", "FT", "GA"]},
    ...         {"name": "seed", "role": "replicate", "labels": ["0", "1"]}]
    >>> svg = render_ranks([{"plan": {"name": "small"}, "axes": axes, "cells": cells}])
    >>> svg.startswith("<svg "), "GA 1.0; FT 2.0" in svg
    (True, True)
    """
    ranking = rank_methods(results, score, only=only)
    rows = ranking.rows
    left = 12 + 6.1 * max(len(row.method) for row in rows)
    height = _TOP + _ROW * len(rows) + _BOTTOM
    title = f"{', '.join(one['plan']['name'] for one in results)}: mean rank by {score}"
    means = "; ".join(f"{row.method} {row.rank:.1f}" for row in rows)
    noise = "" if ranking.noise is None else f" Retrained again: {ranking.noise:.1f}."
    with canvas(round(left + _PANEL + _RIGHT), height) as figure:
        axes = add_axes(figure, left, _TOP, _PANEL, _ROW * len(rows), [])
        axes.set_xlim(0.0, len(rows) + 1.0)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(axis="x", alpha=0.3)
        axes.set_yticks(range(len(rows)), [row.method for row in rows])
        if ranking.noise is not None:
            axes.axvline(ranking.noise, color=colour("reference"), dashes=(4, 3), gid="noise")
        for place, row in enumerate(rows):
            axes.plot(row.interval, [place, place], color=colour("mean"), linewidth=1.5, gid="interval")
            axes.plot([row.rank], [place], "o", markersize=6.8, markeredgewidth=0, color=colour("mean"), gid="mean")
            for shown, right in ((row.value, 60), (row.passes, 130)):
                text = "-" if shown is None else f"{shown:.1f}"
                axes.annotate(text, (1, place), (right, -4), xycoords=("axes fraction", "data"), ha="right", **_TEXT)
        for text, right in (("score", 60), ("passes", 130)):
            axes.annotate(text, (1, 1), (right, 12), xycoords="axes fraction", ha="right", **_TEXT)
        head = f"{plural(ranking.settings, 'setting')}, {plural(ranking.seeds, 'seed')}"
        axes.annotate(head, (0, 1), (0, 12), xycoords="axes fraction", fontweight="bold", gid="head", **_TEXT)
        line = "" if ranking.noise is None else "; dashed: a second retrained model"
        label = f"mean rank by {score} (1 is the best{line})"
        axes.annotate(label, (0.5, 0), (0, 4 - _BOTTOM), xycoords="axes fraction", ha="center", **_TEXT)
        digest = hashlib.sha256(f"{title}\n{comment}".encode()).hexdigest()
        return render_svg(
            figure, title=title, description=f"{means}.{noise}", identity=f"figure-{digest[:8]}", colours=_COLOURS,
            comment=comment,
        )  # fmt: skip
