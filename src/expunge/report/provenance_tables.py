"""Provenance as rows of name and text; what all models of a comparison share is said once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .content import ModelResult, finite
from .formatting import DASH

#: What the models of a comparison may share; options and history are always said model by model.
_SHARED = ("Seeds", "Hashes", "Architecture", "Data", "Recipe", "Facts")


def flat(facts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested facts as rows of dotted name and text; nothing prints as NaN."""
    rows: list[tuple[str, str]] = []
    for name, value in facts.items():
        where = f"{prefix}{name}"
        if isinstance(value, Mapping):
            rows += flat(value, f"{where}.") if value else [(where, DASH)]
        else:
            rows.append((where, _plain(value)))
    return rows


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_plain, value)) or DASH
    if isinstance(value, Mapping):
        return "; ".join(f"{name} {text}" for name, text in flat(value)) or DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return DASH if finite(value) is None else f"{value:.6g}"
    if value is None:
        return "none"
    return str(value) if value != "" else DASH


def sheets(models: Sequence[ModelResult]) -> list[dict[str, Any]]:
    """A sheet for each model, after one with the facts that all of them (that recorded any) have in common."""
    tables = [_tables(model) for model in models]
    recorded = [table for table in tables if table]
    common: dict[str, list[tuple[str, str]]] = {}
    if len(recorded) > 1:
        for title in _SHARED:
            holders = [table[title] for table in recorded if title in table]
            rows = [row for row in holders[0] if all(row in other for other in holders)] if len(holders) > 1 else []
            if rows:
                common[title] = rows
    found = []
    if common:
        found.append({"label": "In common", "tables": list(common.items()), "history": ()})
    for model, table in zip(models, tables, strict=True):
        own = []
        for title, rows in table.items():
            left = [row for row in rows if row not in common.get(title, ())]
            if left:
                own.append((title, left))
        found.append({"label": model.label, "tables": own, "history": model.history})
    return found


def _tables(model: ModelResult) -> dict[str, list[tuple[str, str]]]:
    groups = {"Options": model.options, "Seeds": model.seeds, "Hashes": model.hashes, **_titled(model.facts)}
    return {title: flat(facts) for title, facts in groups.items() if facts}


def _titled(facts: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Facts that are mappings under their own capitalised heading; the others together under `Facts`."""
    nested = {name.capitalize(): value for name, value in facts.items() if isinstance(value, Mapping)}
    loose = {name: value for name, value in facts.items() if not isinstance(value, Mapping)}
    return {**nested, **({"Facts": loose} if loose else {})}
