"""Provenance as rows of name and text; facts that all models of a comparison share are shown once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .content import ModelResult
from .formatting import DASH
from .values import as_finite

#: Tables that the models of a comparison may share; options and history are shown for each model.
_SHARED = ("Seeds", "Hashes", "Architecture", "Data", "Recipe", "Facts")


def flatten_facts(facts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Flatten nested facts to rows of dotted name and text; NaN and infinity become an en dash."""
    rows: list[tuple[str, str]] = []
    for name, value in facts.items():
        where = f"{prefix}{name}"
        if isinstance(value, Mapping):
            rows += flatten_facts(value, f"{where}.") if value else [(where, DASH)]
        else:
            rows.append((where, _format_value(value)))
    return rows


def _format_value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_format_value, value)) or DASH
    if isinstance(value, Mapping):
        return "; ".join(f"{name} {text}" for name, text in flatten_facts(value)) or DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return DASH if as_finite(value) is None else f"{value:.6g}"
    if value is None:
        return "none"
    return str(value) if value != "" else DASH


def build_provenance_tables(models: Sequence[ModelResult]) -> list[dict[str, Any]]:
    """Build the tables of each model, preceded by one with the facts that all models with such a table share."""
    tables = [_build_tables(model) for model in models]
    recorded = [table for table in tables if table]
    common: dict[str, list[tuple[str, str]]] = {}
    if len(recorded) > 1:
        for title in _SHARED:
            groups = [table[title] for table in recorded if title in table]
            rows = [row for row in groups[0] if all(row in other for other in groups)] if len(groups) > 1 else []
            if rows:
                common[title] = rows
    found = []
    if common:
        found.append({"label": "In common", "tables": list(common.items()), "history": ()})
    for model, table in zip(models, tables, strict=True):
        remaining = []
        for title, rows in table.items():
            rest = [row for row in rows if row not in common.get(title, ())]
            if rest:
                remaining.append((title, rest))
        found.append({"label": model.label, "tables": remaining, "history": model.history})
    return found


def _build_tables(model: ModelResult) -> dict[str, list[tuple[str, str]]]:
    file = {"name": model.file, "sha256": model.file_hash} if model.file else {}
    groups = {
        "Model file": file,
        "Options": model.options,
        "Seeds": model.seeds,
        "Hashes": {**model.hashes, **({"imported weights": model.imported} if model.imported else {})},
        **_group_by_title(model.facts),
    }
    return {title: flatten_facts(facts) for title, facts in groups.items() if facts}


def _group_by_title(facts: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Group facts by title: a mapping under its capitalised name, all other facts under `Facts`."""
    nested = {name.capitalize(): value for name, value in facts.items() if isinstance(value, Mapping)}
    plain = {name: value for name, value in facts.items() if not isinstance(value, Mapping)}
    return {**nested, **({"Facts": plain} if plain else {})}
