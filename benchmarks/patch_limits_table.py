"""The tables of `docs/patches.md`, section Limits, from results/patch_limits.json.

python benchmarks/patch_limits_table.py
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "patch_limits.json"
NAMES = {
    "patches-location30": "Location-30, MLP 446-256-30",
    "patches-adult": "Adult, MLP 108-256-2",
    "patches-fashion-mlp": "Fashion-MNIST, MLP 784-256-256-10",
    "patches-fashion-lenet5": "Fashion-MNIST, LeNet-5",
}
#: Columns of the executions; certificates do not cover the last two.
WAYS = {
    "eager, one by one": "one by one",
    "eager, batches of 32": "batches of 32",
    "eager, two threads": "two threads",
    "eager, without oneDNN": "no oneDNN",
    "eager, channels-last": "channels-last",
    "torch.compile": "`torch.compile`",
    "onnxruntime": "onnxruntime",
    "eager, float64": "float64",
    "eager, NNPACK": "NNPACK",
}
POPULATIONS = {"forgotten": "forgotten records", "training": "training records", "faces": "points at a face"}


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _interval(part: Mapping[str, float], places: int = 1) -> str:
    return f"{part['percent']:.{places}f} ({part['low']:.{places}f} to {part['high']:.{places}f})"


def _count(part: Mapping[str, Any]) -> str:
    return f"{part['count']} of {part['of']}"


def changes(body: Mapping[str, Any]) -> str:
    """What small changes of forgotten records are answered."""
    head = ["setting", "change", "patched, %", "original, %", "retrained, %", "gate open, %"]
    rows = [_row(head), _row(["---", "---", *["---:"] * 4])]
    for name, setting in body["settings"].items():
        for kind, part in setting["changes"].items():
            numbers = [_interval(part[model], 2) for model in ("patched", "base", "retrained", "gate")]
            rows.append(_row([NAMES[name], kind, *numbers]))
    return "\n".join(rows)


def regions(body: Mapping[str, Any]) -> str:
    """Shared patterns, and the size of regions."""
    head = [
        "setting",
        "pattern shared, %",
        "others with it, mean",
        "most",
        "no tried change inside, %",
        "radius, median (quartiles)",
    ]
    rows = [_row(head), _row(["---", *["---:"] * 5])]
    for name, setting in body["settings"].items():
        sharing, size = setting["sharing"], setting["regions"]
        low, median, high = (f"{radius:.2g}" for radius in size["radius_quartiles"])
        others = "-" if sharing["others_of_those"] is None else f"{sharing['others_of_those']:.2f}"
        most = max(row["others_most"] for row in sharing["by_seed"])
        numbers = [f"{sharing['percent_shared']:.2f}", others, str(most)]
        rows.append(_row([NAMES[name], *numbers, _interval(size["point_only"]), f"{median} ({low} to {high})"]))
    return "\n".join(rows)


def executions(body: Mapping[str, Any]) -> str:
    """Points whose bits differ between executions."""
    head = ["setting", "points", "near a face", "of these, other bits", *WAYS.values()]
    rows = [_row(head), _row(["---", "---", *["---:"] * (len(head) - 2)])]
    for name, setting in body["settings"].items():
        for population, label in POPULATIONS.items():
            part = setting["executions"][population]
            found = part["points_with_other_bits"]
            cells = [f"{part['points']} {label}", _count(part["near_a_face"]), _count(part["any_float32_near_a_face"])]
            rows.append(_row([NAMES[name], *cells, *(str(found[w]["count"]) if w in found else "-" for w in WAYS)]))
    return "\n".join(rows)


if __name__ == "__main__":
    held = json.loads(RESULT.read_text())
    print("\n\n".join(table(held) for table in (changes, regions, executions)))
