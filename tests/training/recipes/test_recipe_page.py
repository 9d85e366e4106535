"""docs/recipes.md: its tables are those that the code gives, and they name every field and rule."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from expunge.training import RECIPES, Recipe
from expunge.training.recipes.checks import NO_DECAY
from expunge.training.recipes.docs_page import render_table, update_page

PAGE = Path(__file__).parents[3] / "docs" / "recipes.md"


def test_the_page_is_current() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert update_page(text) == text, "run `make pages`"
    assert text.count("-->\n\n| ") == text.count("<!-- generated: ") == 4, "every table is filled"
    assert update_page(text.replace("| `eps` |", "| `epsilon` |")) == text


def test_the_tables_are_complete() -> None:
    fields = render_table("fields")
    assert all(f"| `{field.name}` |" in fields for field in dataclasses.fields(Recipe))
    assert all(f"| `{name}` |" in render_table("recipes") for name in RECIPES)
    assert all(f"| `{name}` |" in render_table("decay") for name in NO_DECAY)
