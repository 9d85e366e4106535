"""Render the tables of a plan from its result file: as Markdown (dense and sparse side by side) or as plain text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from expunge.core.errors import ConfigError, unknown_name_hint
from expunge.core.show import plural
from expunge.evaluation.facts import score_facts, score_title

from .summary import TableSection, make_sections, row_label

STYLES = ("text", "markdown")
#: Columns that the legend names one by one.
_LISTED = 3
_FLOOR = (
    "Noise floor: mean absolute difference over pairs of references that differ only in their seed; a gap below it "
    "cannot be told from noise, and a gap above it is not yet evidence."
)
_RERUN_FLOOR = (
    "Noise floor of {}: the mean of the reruns of the reference, which is a second retrained model with another order "
    "of records."
)
_OVERLAP_LEGEND = (
    "Normalised overlap: (IoU(mask, RR) - IoU(original, RR)) / (IoU(RR', RR) - IoU(original, RR)), where RR is the "
    "reference and RR' its rerun with another order of records; means over seeds with 95 % intervals. There is no "
    "ratio if the denominator's interval is not above 0."
)


def render_table(results: Mapping[str, Any], style: str = "text") -> str:
    """Render all tables, the claims with their verdicts, and the hardware and versions of the run.

    Args:
        results: see `read_results`.
        style: `text` (a row for every method and sparsity) or `markdown` (sparsities side by side, as in [Jia2023]).

    Raises:
        ConfigError: unknown style.

    >>> from expunge.experiments import render_table
    >>> cells = [
    ...     {"labels": {"method": method, "seed": str(seed)}, "method": method, "sparsity": 0.9, "reference": seed,
    ...      "is_reference": method == "Retrain", "state": "finished", "scores": {"UA": value + seed}}
    ...     for method, value in (("Retrain", 20.0), ("FT", 12.0)) for seed in (0, 1)
    ... ]
    >>> axes = [{"name": "method", "role": "method", "labels": ["Retrain", "FT"]},
    ...         {"name": "seed", "role": "replicate", "labels": ["0", "1"]}]
    >>> results = {
    ...     "plan": {"name": "small", "description": ""}, "axes": axes, "cells": cells, "columns": ["UA"],
    ...     "scores": {"UA": {"unit": "%"}}, "passes_limit": 0.1, "claims": [], "made": {"stages": 0},
    ... }
    >>> print(render_table(results).partition("UA: mean")[0].strip())
    small
    <BLANKLINE>
    all cells (2 seeds)
    <BLANKLINE>
    method       sparsity               UA %
    ----------------------------------------
    Retrain      90 %             20.50±0.71
    FT           90 %      12.50±0.71 (8.00)
    noise floor  90 %                   1.00
    """
    if style not in STYLES:
        raise ConfigError(f"unknown style {style!r}", hint=unknown_name_hint(style, STYLES))
    plan, sections = results["plan"], list(make_sections(results))
    parts = [f"# {plan['name']}" if style == "markdown" else plan["name"]]
    if plan["description"]:
        parts.append(plan["description"])
    for section in sections:
        parts.append(_render_heading(section, style))
        parts.append(_render_markdown(section) if style == "markdown" else _render_text(section))
        if section.overlaps:
            parts.append(_render_overlaps(section, results["axes"], style))
    parts.append(_render_legend(sections))
    if results.get("rerun"):
        parts.append(_OVERLAP_LEGEND)
    parts += _render_options_sources(results)
    parts += _render_warnings(results)
    if results["claims"]:
        parts.append("## Claims" if style == "markdown" else "Claims (fixed in the plan before it was run)")
        parts += [_render_claim(claim, style) for claim in results["claims"]]
    parts.append(_render_provenance(results))
    return "\n\n".join(parts) + "\n"


def _render_legend(sections: Sequence[TableSection]) -> str:
    shown = list(dict.fromkeys(name for section in sections for name in section.columns))
    sentences = [*_describe_gaps(shown), *_list_legends(shown)]
    floors = {name for section in sections for column in section.floor.values() for name in column if name in shown}
    if any(not score_facts(name).rerun_floor for name in floors):
        sentences.append(_FLOOR)
    reruns = [score_title(name) for name in shown if score_facts(name).rerun_floor and name in floors]
    if reruns:
        sentences.append(_RERUN_FLOOR.format(", ".join(reruns)))
    intervals = [score_title(name) for name in shown if score_facts(name).interval]
    if intervals:
        sentences.append(f"{', '.join(intervals)}: with the 95 % t interval of the mean over the seeds.")
    if (reruns or intervals) and not any(score_facts(name).gap for name in shown):
        sentences.insert(0, "Mean±spread over seeds.")
    return " ".join(sentences) or "Mean±spread over seeds."


def _describe_gaps(shown: Sequence[str]) -> list[str]:
    """What the columns contain: those with a gap, then those without one and without a legend."""
    facts = [score_facts(name) for name in shown]
    gapped = [score_title(one.name) for one in facts if one.gap]
    plain = [score_title(one.name) for one in facts if not (one.gap or one.averages or one.legend)]
    if not gapped:
        return []
    sentences = [f"{', '.join(gapped)}: mean±spread over seeds (gap of the means to the reference)."]
    others = ", ".join(plain) if len(plain) <= _LISTED else "Other columns"
    return [*sentences, *([f"{others}: mean±spread over seeds."] if plain else [])]


def _list_legends(shown: Sequence[str]) -> list[str]:
    """The legends of the scores that are shown: those of the default columns first, in their order."""
    facts = sorted(map(score_facts, shown), key=lambda one: (one.column or math.inf, one.order))
    return [one.legend for one in facts if one.legend]


def _has_floor(section: TableSection) -> bool:
    return any(_floor_text(section, column, name) for column in _columns(section) for name in section.columns)


def _render_overlaps(section: TableSection, axes: Sequence[Mapping[str, Any]], style: str) -> str:
    """Render the normalised overlaps of a case: numerator, denominator and ratio, each with its interval."""

    def render(value: float, interval: Mapping[str, float]) -> str:
        return f"{value:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"

    names = [axis["name"] for axis in axes if axis["role"] in ("method", "sparsity")]
    lines = [["Mask of", "Numerator", "Denominator", "Normalised overlap"]]
    for one in section.overlaps:
        label = ", ".join(one["at"][name] for name in names)
        parts = [render(one[part]["value"], one[part]["interval"]) for part in ("numerator", "denominator")]
        ratio = "-" if one["ratio"] is None else render(one["ratio"], one["ratio_interval"])
        lines.append([label, *parts, ratio])
    if style == "text":
        return align_columns(lines)
    rule = ["---", *["---:"] * (len(lines[0]) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], rule, *lines[1:]))


def _render_heading(section: TableSection, style: str) -> str:
    case = ", ".join(f"{axis} {label}" for axis, label in section.case.items()) or "all cells"
    text = f"{case} ({section.seeds} seed{'s' if section.seeds > 1 else ''})"
    return f"## {text}" if style == "markdown" else text


def _columns(section: TableSection) -> list[str]:
    found: dict[str, None] = {}
    for row in section.rows.values():
        found.update(dict.fromkeys(row))
    return list(found)


def _floor_text(section: TableSection, column: str, name: str) -> str:
    value = section.floor.get(column, {}).get(name)
    return "" if value is None else f"{value:.{score_facts(name).decimals}f}"


def _render_markdown(section: TableSection) -> str:
    columns = _columns(section)
    head = ["Method"]
    for heading in section.columns.values():
        head += [f"{heading} {column}" for column in columns]
    lines = [head]
    for method, row in section.rows.items():
        cells = [row[column][name].text() if column in row else "" for name in section.columns for column in columns]
        lines.append([method, *cells])
    if _has_floor(section):
        floor = (_floor_text(section, column, name) for name in section.columns for column in columns)
        lines.append(["*noise floor*", *floor])
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], rule, *lines[1:]))


def _render_text(section: TableSection) -> str:
    lines = [["method", "sparsity", *section.columns.values()]]
    for method, row in section.rows.items():
        lines += [[method, column, *(row[column][name].text() for name in section.columns)] for column in row]
    if _has_floor(section):
        lines += [
            ["noise floor", column, *(_floor_text(section, column, name) for name in section.columns)]
            for column in _columns(section)
        ]
    return align_columns(lines)


def align_columns(lines: Sequence[Sequence[str]]) -> str:
    """Align plain columns: the first two to the left, numbers to the right, with a rule below the heading."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    shown = []
    for line in lines:
        cells = [
            cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ]
        shown.append("  ".join(cells).rstrip())
    return "\n".join([shown[0], "-" * max(map(len, shown)), *shown[1:]])


def _render_options_sources(results: Mapping[str, Any]) -> list[str]:
    """Which rows have tuned options and which have defaults; nothing if no row is tuned."""
    roles = {axis["name"]: axis["role"] for axis in results["axes"]}
    found: dict[str, dict[str, None]] = {}
    for cell in results["cells"]:
        if "options_from" in cell and not cell["is_reference"]:
            found.setdefault(cell["options_from"], {})[row_label(cell, roles, "method")] = None
    if "tuned" not in found:
        return []
    titles = {
        "tuned": "Tuned (`expunge bench tune`, on a proxy request)",
        "default": "Default options",
        "plan": "Options set by the plan",
    }
    return [f"{titles[source]}: {'; '.join(found[source])}." for source in titles if source in found]


def _render_warnings(results: Mapping[str, Any]) -> list[str]:
    found = []
    limit = results["passes_limit"]
    over = [cell for cell in results["cells"] if cell.get("over_limit")]
    if over:
        worst = max(over, key=lambda cell: cell["passes_fraction"])
        found.append(
            f"! {len(over)} cells used more than {limit:g} of the passes of {results['reference']} "
            f"(worst: {worst['passes_fraction']:.3f}, {_name(worst)}): their comparison is not fair."
        )
    failed = [cell for cell in results["cells"] if cell["state"] == "failed"]
    missing = [cell for cell in results["cells"] if cell["state"] == "missing"]
    found += [f"FAILED: {_name(cell)}: {cell['message']}" for cell in failed]
    if missing:
        found.append(f"{len(missing)} of {len(results['cells'])} cells have not been run.")
    return found


def _name(cell: Mapping[str, Any]) -> str:
    return ", ".join(f"{axis} {label}" for axis, label in cell["labels"].items())


def _title(score: str) -> str:
    """A score of a claim as its column is headed; `gap:` before it stays."""
    name = score.removeprefix("gap:")
    return score[: len(score) - len(name)] + score_title(name)


def _render_claim(claim: Mapping[str, Any], style: str) -> str:
    first, second = (", ".join(f"{k} {v}" for k, v in group.items()) for group in claim["compare"])
    by = f" by at least {claim['by']:g}" if claim["by"] else ""
    head = f"{claim['name']}: {claim['statement'].strip()}"
    times = f"{claim['factor']:g} times " if "factor" in claim else ""
    rule = f"{_title(claim['score'])}: {first} {claim['expect']} than {times}{second}{by}"
    lines = [
        f"**{claim['name']}**: {claim['statement'].strip()} ({rule})" if style == "markdown" else f"{head}\n  {rule}"
    ]
    for check in claim["checks"]:
        at = ", ".join(f"{k} {v}" for k, v in check["at"].items())
        numbers = f"{check['pairs']} pairs"
        if check["pairs"]:
            numbers += f", means {check['first']:.2f} and {check['second']:.2f}"
        if check["interval"] is not None:
            low, high = check["interval"]
            numbers += f", gain {check['gain']:.2f}±{check['spread']:.2f}"
            numbers += f", {100 * claim['level']:g} % interval {low:.2f} to {high:.2f}"
        bullet = "- " if style == "markdown" else "  "
        verdict = f"**{check['verdict']}**" if style == "markdown" else check["verdict"].upper()
        lines.append(f"{bullet}{at + ': ' if at else ''}{verdict} ({numbers})")
    if not claim["checks"]:
        lines.append("  not tested: the plan has no matching cells")
    return "\n".join(lines)


def _render_provenance(results: Mapping[str, Any]) -> str:
    parts = [made for made in (*results["made"].get("kept", ()), results["made"]) if made["stages"]]
    if not parts:
        return "Nothing has been run."
    plan = f"Plan {results['plan']['file']}, hash {results['plan']['hash'][:12]}."
    return " ".join([*map(_describe_run, parts), plan])


def _describe_run(made: Mapping[str, Any]) -> str:
    hardware = "; ".join(
        ", ".join([h["processor"], *h.get("accelerators", ()), f"{h['cores']} cores", h["system"]])
        for h in made["hardware"]
    )
    torch = ", ".join(sorted({v["torch"] for v in made["versions"]}))
    threads = "/".join(map(str, made["threads"]))
    return (
        f"Run from {made['first']} to {made['last']}: {plural(made['stages'], 'stage')}, "
        f"{format_duration(made['seconds'])} of computation on {hardware} ({threads} threads per process), "
        f"torch {torch}."
    )


def format_duration(seconds: float) -> str:
    """Format seconds: `42 s`, `3 min 20 s`, `2 h 5 min`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"
