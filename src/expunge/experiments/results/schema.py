"""The shape of a result file, checked before anything is computed from it. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from expunge.core.errors import FileError
from expunge.core.reading.limits import LABEL_LENGTH, PLAN_AXES, PLAN_CELLS
from expunge.core.reading.shape import (
    anything,
    check_shape,
    fail,
    flag,
    integer,
    mapping,
    maybe,
    number,
    record,
    sequence,
    text,
)
from expunge.evaluation.facts import built_in_facts

ROLES = ("case", "method", "sparsity", "replicate")
STATES = ("finished", "failed", "missing")
#: Numbers in a table: rows times columns; real tables have a few hundred.
TABLE_CELLS = 1_000_000
_PAIR = sequence(number(), shortest=2, longest=2)
_LABEL, _NAME, _LINE = text(LABEL_LENGTH), text(200), text(20_000)
_LABELS = mapping(_LABEL, longest=PLAN_AXES, keys=LABEL_LENGTH)
_SCORES = mapping(number(), longest=1_000, keys=200)
_CELL = record(
    {
        "labels": _LABELS,
        "method": _NAME,
        "sparsity": number(low=0, high=1),
        "reference": integer(0),
        "is_reference": flag,
        "state": text(known=STATES),
        "scores": _SCORES,
    },
    {
        "message": _LINE,
        "intervals": mapping(_PAIR, longest=1_000, keys=200),
        "notes": sequence(_LINE, longest=1_000),
        "guarantee": _NAME,
        "options_from": text(known=("tuned", "plan", "default")),
        "options": integer(0),
        "cost": mapping(maybe(number()), longest=100),
        "passes_fraction": number(),
        "over_limit": flag,
        "hashes": mapping(maybe(_NAME), longest=100),
        "stage_seconds": mapping(number(), longest=100),
    },
)
_SELECTION = mapping(anything, longest=PLAN_AXES, keys=LABEL_LENGTH)
_CHECKED = record(
    {
        "at": _LABELS,
        "pairs": integer(0),
        "first": maybe(number()),
        "second": maybe(number()),
        "gain": maybe(number()),
        "spread": maybe(number()),
        "interval": maybe(_PAIR),
        "verdict": _NAME,
    }
)


def _check_tested(value: Any, key: str) -> None:
    """A check of a claim: with pairs it has means, with an interval a gain and a spread."""
    _CHECKED(value, key)
    needed = (("first", "second") if value["pairs"] else ()) + (("gain", "spread") if value["interval"] else ())
    for name in needed:
        if value[name] is None:
            fail(None, f"{key}.{name}", "a number")


_CLAIM = record(
    {
        "name": _NAME,
        "statement": _LINE,
        "score": _NAME,
        "compare": sequence(_SELECTION, shortest=2, longest=2),
        "expect": text(known=("lower", "higher")),
        "by": number(),
        "level": number(low=0, high=1),
        "checks": sequence(_check_tested, longest=100_000),
    },
    {"factor": number()},
)
_MEASURED = record({"value": number(), "interval": record({"low": number(), "high": number()})})
_HARDWARE = record(
    {"processor": _NAME, "cores": integer(0), "system": _NAME}, {"accelerators": sequence(_NAME, longest=1_000)}
)
_RUN: dict[str, Any] = {
    "first": maybe(_NAME),
    "last": maybe(_NAME),
    "seconds": number(low=0),
    "hardware": sequence(_HARDWARE, longest=10_000),
    "versions": sequence(mapping(_NAME, longest=100), longest=10_000),
    "threads": sequence(integer(0), longest=10_000),
}
_MADE = record({"stages": integer(0)}, {**_RUN, "kept": sequence(record({"stages": integer(1)}, _RUN), longest=1_000)})
_RESULTS = record(
    {
        "plan": record(
            {"name": _NAME, "description": text(100_000), "hash": _NAME, "file": _NAME},
            {"hash_before_rename": text(pattern="[0-9a-f]{64}")},
        ),
        "axes": sequence(
            record({"name": _LABEL, "role": text(known=ROLES), "labels": sequence(_LABEL)}), longest=PLAN_AXES
        ),
        "cells": anything,
        "claims": sequence(_CLAIM, longest=10_000),
        "made": _MADE,
        "passes_limit": number(),
        "scores": mapping(
            record({}, {"unit": _NAME, "direction": _NAME, "definition": _LINE, "citation": _LINE}), keys=200
        ),
    },
    {
        "reference": _LABEL,
        "columns": sequence(_NAME, longest=200),
        "rerun": maybe(_LABEL),
        "curves": mapping(_SELECTION, longest=200, keys=LABEL_LENGTH),
        "options": sequence(mapping(anything)),
        "overlaps": sequence(
            record(
                {"at": _LABELS, "numerator": _MEASURED, "denominator": _MEASURED, "ratio": maybe(number())},
                {"ratio_interval": maybe(record({"low": number(), "high": number()}))},
            )
        ),
    },
)


def check_results(results: Mapping[str, Any], where: object) -> None:
    """Raise FileError unless tables and figures can be made from the contents of a result file.

    Raises:
        FileError: a key is missing or has a value of another type or size; a cell has labels that no axis has, or
            refers to a cell that does not exist; or the table is too large.
    """
    hint = "see docs/formats/results.md"
    check_shape(results, _RESULTS, where=where, hint=hint)
    cells = results["cells"]
    if isinstance(cells, list):
        PLAN_CELLS.check(len(cells), "has", where=f"{where}: cells")
    check_shape({"cells": cells}, record({"cells": sequence(_CELL)}), where=where, hint=hint)
    check_shape(results, _check_references, where=where, hint=hint)


def _check_references(results: Any, _: str) -> None:
    axes = {axis["name"]: set(axis["labels"]) for axis in results["axes"]}
    if len(axes) != len(results["axes"]):
        raise FileError("two axes have the same name", where="axes")
    cells, options = results["cells"], len(results.get("options", ()))
    for index, cell in enumerate(cells):
        key = f"cells.{index}"
        if cell["labels"].keys() != axes.keys():
            raise FileError("does not have one label for every axis", where=f"{key}.labels")
        for name, label in cell["labels"].items():
            if label not in axes[name]:
                fail(label, f"{key}.labels.{name}", "a label of this axis")
        if cell["reference"] >= len(cells):
            fail(cell["reference"], f"{key}.reference", "the index of a cell")
        if cell.get("options", -1) >= options:
            fail(cell["options"], f"{key}.options", "an index of the list `options`")
        if cell.get("over_limit") and "passes_fraction" not in cell:
            raise FileError("the key 'passes_fraction' is missing", where=key)
        if cell["state"] == "failed" and "message" not in cell:
            raise FileError("the key 'message' is missing", where=key)
    named = [axis["name"] for axis in results["axes"] if axis["role"] != "replicate"]
    for index, overlap in enumerate(results.get("overlaps", ())):
        missing = [name for name in named if name not in overlap["at"]]
        if missing:
            raise FileError("does not have a label for every axis", where=f"overlaps.{index}.at")
        if overlap["ratio"] is not None and overlap.get("ratio_interval") is None:
            raise FileError("is missing", where=f"overlaps.{index}.ratio_interval")
    for index, made in enumerate((results["made"], *results["made"].get("kept", ()))):
        if made["stages"]:
            key = f"made.kept.{index - 1}" if index else "made"
            record(dict.fromkeys(("first", "last", "seconds", "hardware", "versions", "threads"), anything))(made, key)
            sequence(record({"torch": anything}))(made["versions"], f"{key}.versions")
    if results["claims"] or any(cell.get("over_limit") for cell in cells):
        record({"reference": anything})(results, "")
    _check_table(results)


def _check_table(results: Mapping[str, Any]) -> None:
    roles = {axis["name"]: axis["role"] for axis in results["axes"]}
    sides = []
    for role in ("method", "sparsity"):
        names = [name for name, own in roles.items() if own == role]
        plain = "method" if role == "method" else "sparsity"
        sides.append({tuple(c["labels"][name] for name in names) if names else c[plain] for c in results["cells"]})
    columns = len(results.get("columns") or ()) or sum(facts.column > 0 for facts in built_in_facts().values())
    if len(sides[0]) * len(sides[1]) * columns > TABLE_CELLS:
        raise FileError(
            f"makes a table of {len(sides[0]):,} rows and {len(sides[1]) * columns:,} columns", where="cells",
            hint=f"the limit is {TABLE_CELLS:,} numbers",
        )  # fmt: skip
