"""Generates the tables of docs/scores.md from the facts of the scores. `make pages` writes them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from expunge.core.registry import SCORES
from expunge.core.registry.tables import render_rows, replace_tables
from expunge.evaluation.facts import NEEDS, built_in_facts, order_names, score_facts


def list_scores() -> list[dict[str, Any]]:
    """The facts of every known score, plug-ins included, in the order of the tables. No score is imported.

    Examples:
        >>> from expunge.evaluation import list_scores
        >>> rows = list_scores()
        >>> rows[0]["name"], rows[0]["direction"], rows[0]["meaning"][:23]
        ('UA', 'reference', '100 - accuracy on D_f; ')
    """
    built_in = built_in_facts()
    rows = []
    for name in order_names(SCORES.names()):
        facts = score_facts(name)
        rows.append(
            {
                "name": facts.name,
                "unit": facts.unit,
                "direction": facts.direction,
                "needs": list(facts.needs),
                "meaning": facts.text,
                "citation": facts.citation,
                "built_in": name in built_in,
            }
        )
    return rows


def score_table_markdown() -> str:
    """The tables of docs/scores.md: the built-in scores (those of one function share a row), and what they need."""
    scores = [
        (names, row["unit"], row["direction"], ", ".join(row["needs"]), row["meaning"]) for names, row in _group_rows()
    ]
    table = render_rows(("score", "unit", "direction", "needs", "meaning"), scores)
    return f"{table}\n\n{render_rows(('need', 'what it is'), NEEDS.items())}\n"


def update_score_page(text: str) -> str:
    """Replace the tables of a page: what is between `<!-- generated: scores -->` and `<!-- end -->`.

    >>> page = "Scores:\\n\\n<!-- generated: scores -->\\nempty\\n<!-- end -->\\n"
    >>> "empty" in page, "empty" in update_score_page(page), "accuracy on D_f" in update_score_page(page)
    (True, False, True)
    """
    return replace_tables(text, lambda kind: score_table_markdown().rstrip())


def _group_rows() -> Iterator[tuple[str, dict[str, Any]]]:
    """The names of the scores that are measured by one function, as `first, ..., last`, and the facts of the first."""

    def measured_by(row: dict[str, Any]) -> tuple[str, str]:
        definition = SCORES.describe(row["name"])
        return definition.module, definition.qualname

    for _, group in itertools.groupby((row for row in list_scores() if row["built_in"]), key=measured_by):
        rows = list(group)
        names = [row["name"] for row in rows]
        yield names[0] if len(names) == 1 else f"{names[0]}, ..., {names[-1]}", rows[0]


def score_table_text(rows: Iterable[Mapping[str, Any]]) -> str:
    """Scores with their facts, as plain text.

    Args:
        rows: of `list_scores`.
    """
    lines = []
    for row in rows:
        unit = f" {row['unit']}" if row["unit"] else ""
        lines += [
            f"{row['name']}{unit}  [{row['direction']}; needs {', '.join(row['needs'])}]",
            f"    {row['meaning']}",
        ]
        lines += [f"    citation: {row['citation']}"] if row["citation"] else []
    return "\n".join(lines)
