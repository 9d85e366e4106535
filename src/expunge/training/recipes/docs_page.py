"""Generates the tables of docs/recipes.md from the code. `make pages` writes them."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable

from expunge.core.registry.tables import render_rows, replace_tables

from .checks import NO_DECAY
from .named import RECIPES
from .rates import LR_UPDATES
from .recipe import Recipe


def _describe_fields() -> dict[str, str]:
    """What the docstring of `Recipe` says about each field."""
    text = inspect.cleandoc(Recipe.__doc__ or "")
    section = text.partition("Attributes:\n")[2].partition("\n\n")[0]
    found: dict[str, str] = {}
    for entry in re.split(r"\n    (?=\S)", "\n" + section)[1:]:
        names, _, meaning = " ".join(entry.split()).partition(": ")
        found.update({name.strip(): meaning for name in names.split(",")})
    return found


def _field_rows() -> list[tuple[str, ...]]:
    described = _describe_fields()
    rows: list[tuple[str, ...]] = []
    for field in dataclasses.fields(Recipe):
        default = field.default
        shown = {0.0: "0", 8 / 182: "8 / 182"}.get(default) if isinstance(default, float) else None
        text = shown or ("none" if default is None or default == () else str(default).strip("()"))
        rows.append((f"`{field.name}`", text, described[field.name]))
    return rows


def _recipe_rows() -> list[tuple[str, ...]]:
    base = Recipe()
    rows: list[tuple[str, ...]] = []
    for name, recipe in RECIPES.items():
        fields = [field.name for field in dataclasses.fields(Recipe) if field.name != "name"]
        changed = {field: getattr(recipe, field) for field in fields if getattr(recipe, field) != getattr(base, field)}
        values = ", ".join(f"`{field}` {_show(value)}" for field, value in changed.items())
        rows.append((f"`{name}`", values or "the defaults below"))
    return rows


def _show(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(_show(one) for one in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


_TABLES: dict[str, tuple[tuple[str, ...], Callable[[], list[tuple[str, ...]]]]] = {
    "recipes": (("recipe", "fields that differ from the defaults"), _recipe_rows),
    "fields": (("field", "default", "meaning"), _field_rows),
    "decay": (
        ("`no_decay`", "meaning"), lambda: [(f"`{name}`", meaning) for name, meaning in NO_DECAY.items()]
    ),
    "updates": (
        ("`lr_update`", "the rate changes"), lambda: [(f"`{name}`", meaning) for name, meaning in LR_UPDATES.items()]
    ),
}  # fmt: skip


def render_table(kind: str) -> str:
    """Render a table as Markdown.

    Args:
        kind: `recipes`, `fields`, `decay` or `updates`.

    Example:
        >>> print(next(line for line in render_table("fields").splitlines() if "`eps`" in line))
        | `eps` | 1e-08 | of `adam` and `adamw`. |
    """
    headings, make_rows = _TABLES[kind]
    return render_rows(headings, make_rows())


def update_page(text: str) -> str:
    """Replace the generated tables of a page: what is between `<!-- generated: KIND -->` and `<!-- end -->`."""
    return replace_tables(text, render_table)
