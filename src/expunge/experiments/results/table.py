"""The tables of a plan, from its result file alone: as Markdown (dense and sparse side by side) or as plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from expunge.core.errors import ConfigError, unknown_name_hint

from .summary import Block, blocks, decimals

STYLES = ("text", "markdown")
#: A sentence of the legend, and the scores it is about: it stands where a table has one of them.
_LEGEND: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "UA, MIA-Efficacy, RA, TA: mean±spread over seeds (gap of the means to the reference).",
        ("UA", "MIA-Efficacy", "RA", "TA"),
    ),
    (
        "Disparity: mean±spread of the seed-paired disparity average (average of the four gaps of means, as paper A "
        "prints it).",
        ("Disparity average",),
    ),
    ("RTE: seconds of the method alone.", ("RTE",)),
    ("Passes over the retain set.", ("Passes",)),
    (
        "Leakage AUC: of an attacker who sees masks alone, mean±spread over repetitions; 0.5: no leak. By chance: the "
        "same after shuffling who was trained with D_f. p: share of shufflings at least as far from 0.5.",
        ("Topology leakage",),
    ),
)
_FLOOR = "Noise floor: mean difference between two references that differ only in their seed; a gap below it is none."
_OVERLAP_LEGEND = (
    "Normalised overlap: (IoU(mask, RR) - IoU(original, RR)) / (IoU(RR', RR) - IoU(original, RR)), RR the reference "
    "and RR' the same with another order of records; means over seeds with 95 % intervals. No ratio where the "
    "denominator's interval is not above 0."
)


def render_table(results: Mapping[str, Any], style: str = "text") -> str:
    """All tables, the claims with their verdicts, and what the numbers were measured on.

    Args:
        results: see `read_results`.
        style: `text` (a row for every method and sparsity) or `markdown` (paper A's columns side by side).
    """
    if style not in STYLES:
        raise ConfigError(f"unknown style {style!r}", hint=unknown_name_hint(style, STYLES))
    plan = results["plan"]
    parts = [f"# {plan['name']}" if style == "markdown" else plan["name"]]
    if plan["description"]:
        parts.append(plan["description"])
    made = list(blocks(results))
    for block in made:
        parts.append(_heading(block, style))
        parts.append(_markdown(block) if style == "markdown" else _text(block))
        if block.overlaps:
            parts.append(_overlaps(block, results["axes"], style))
    parts.append(_legend(made))
    if results.get("again"):
        parts.append(_OVERLAP_LEGEND)
    parts += _warnings(results)
    if results["claims"]:
        parts.append("## Claims" if style == "markdown" else "Claims (written into the plan before it was run)")
        parts += [_claim(claim, style) for claim in results["claims"]]
    parts.append(_made(results))
    return "\n\n".join(parts) + "\n"


def _legend(made: Sequence[Block]) -> str:
    shown = {name for block in made for name in block.columns}
    sentences = [sentence for sentence, scores in _LEGEND if shown.intersection(scores)]
    if any(_has_floor(block) for block in made):
        sentences.append(_FLOOR)
    return " ".join(sentences) or "Mean±spread over seeds."


def _has_floor(block: Block) -> bool:
    return any(_floor_text(block, column, name) for column in _columns(block) for name in block.columns)


def _overlaps(block: Block, axes: Sequence[Mapping[str, Any]], style: str) -> str:
    """The normalised overlaps of a case: numerator, denominator, ratio, each with its interval."""

    def shown(value: float, interval: Mapping[str, float]) -> str:
        return f"{value:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"

    names = [axis["name"] for axis in axes if axis["role"] in ("method", "sparsity")]
    lines = [["Mask of", "Numerator", "Denominator", "Normalised overlap"]]
    for one in block.overlaps:
        label = ", ".join(one["at"][name] for name in names)
        parts = [shown(one[part]["value"], one[part]["interval"]) for part in ("numerator", "denominator")]
        ratio = "-" if one["ratio"] is None else shown(one["ratio"], one["ratio_interval"])
        lines.append([label, *parts, ratio])
    if style == "text":
        return aligned(lines)
    rule = ["---", *["---:"] * (len(lines[0]) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], rule, *lines[1:]))


def _heading(block: Block, style: str) -> str:
    case = ", ".join(f"{axis} {label}" for axis, label in block.case.items()) or "all cells"
    text = f"{case} ({block.seeds} seed{'s' if block.seeds > 1 else ''})"
    return f"## {text}" if style == "markdown" else text


def _columns(block: Block) -> list[str]:
    found: dict[str, None] = {}
    for row in block.rows.values():
        found.update(dict.fromkeys(row))
    return list(found)


def _floor_text(block: Block, column: str, name: str) -> str:
    value = block.floor.get(column, {}).get(name)
    return "" if value is None else f"{value:.{decimals(name)}f}"


def _markdown(block: Block) -> str:
    columns = _columns(block)
    head = ["Method"]
    for heading in block.columns.values():
        head += [f"{heading} {column}" for column in columns]
    lines = [head]
    for method, row in block.rows.items():
        cells = [row[column][name].text() if column in row else "" for name in block.columns for column in columns]
        lines.append([method, *cells])
    if _has_floor(block):
        floor = (_floor_text(block, column, name) for name in block.columns for column in columns)
        lines.append(["*noise floor*", *floor])
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], rule, *lines[1:]))


def _text(block: Block) -> str:
    lines = [["method", "sparsity", *block.columns.values()]]
    for method, row in block.rows.items():
        lines += [[method, column, *(row[column][name].text() for name in block.columns)] for column in row]
    if _has_floor(block):
        lines += [
            ["noise floor", column, *(_floor_text(block, column, name) for name in block.columns)]
            for column in _columns(block)
        ]
    return aligned(lines)


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Plain columns: the first two left-aligned, numbers right-aligned, a rule below the heading."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    shown = []
    for line in lines:
        cells = [
            cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ]
        shown.append("  ".join(cells).rstrip())
    return "\n".join([shown[0], "-" * max(map(len, shown)), *shown[1:]])


def _warnings(results: Mapping[str, Any]) -> list[str]:
    found = []
    limit = results["passes_limit"]
    over = [cell for cell in results["cells"] if cell.get("over_limit")]
    if over:
        worst = max(over, key=lambda cell: cell["passes_share"])
        found.append(
            f"! {len(over)} cells used more than {limit:g} of the passes of {results['reference']} "
            f"(worst: {worst['passes_share']:.3f}, {_name(worst)}): their comparison is not a fair one."
        )
    failed = [cell for cell in results["cells"] if cell["state"] == "failed"]
    missing = [cell for cell in results["cells"] if cell["state"] == "missing"]
    found += [f"FAILED: {_name(cell)}: {cell['message']}" for cell in failed]
    if missing:
        found.append(f"{len(missing)} of {len(results['cells'])} cells have not been run.")
    return found


def _name(cell: Mapping[str, Any]) -> str:
    return ", ".join(f"{axis} {label}" for axis, label in cell["labels"].items())


def _claim(claim: Mapping[str, Any], style: str) -> str:
    first, second = (", ".join(f"{k} {v}" for k, v in group.items()) for group in claim["compare"])
    by = f" by at least {claim['by']:g}" if claim["by"] else ""
    head = f"{claim['name']}: {claim['statement'].strip()}"
    times = f"{claim['factor']:g} times " if "factor" in claim else ""
    rule = f"{claim['score']}: {first} {claim['expect']} than {times}{second}{by}"
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
        lines.append("  not tested: the plan has no such cells")
    return "\n".join(lines)


def _made(results: Mapping[str, Any]) -> str:
    made = results["made"]
    if not made["stages"]:
        return "Nothing has been run."
    hardware = "; ".join(f"{h['processor']}, {h['cores']} cores, {h['system']}" for h in made["hardware"])
    torch = ", ".join(sorted({v["torch"] for v in made["versions"]}))
    threads = "/".join(map(str, made["threads"]))
    return (
        f"Run from {made['first']} to {made['last']}: {made['stages']} stages, {duration(made['seconds'])} of work on "
        f"{hardware} ({threads} threads a process), torch {torch}. "
        f"Plan {results['plan']['file']}, hash {results['plan']['hash'][:12]}."
    )


def duration(seconds: float) -> str:
    """Seconds in words: `42 s`, `3 min 20 s`, `2 h 5 min`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"
