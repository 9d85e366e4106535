"""Generates the tables of docs/sparsity.md from the registries. `make pages` writes them.

Everything is read from source; nothing that registers an entry is imported.
"""

from __future__ import annotations

from collections.abc import Callable

from expunge.core.registry import CRITERIA, GRANULARITIES, SCHEDULES, SCOPES, Definition
from expunge.core.registry.registry import Registry
from expunge.core.registry.tables import render_rows, replace_tables

Row = tuple[str, ...]


def _criterion_row(found: Definition) -> Row:
    scores = f"{found.facts.get('level', 'weight')}s"
    return found.name, scores, "yes" if found.facts.get("needs_data") else "", found.facts.get("citation", "")


def _granularity_row(found: Definition) -> Row:
    return found.facts.get("shown_as", found.name), found.facts["unit_name"]


def _scope_row(found: Definition) -> Row:
    return found.name, "yes" if found.facts.get("across_layers", True) else "no"


def _schedule_row(found: Definition) -> Row:
    facts = found.facts
    options = ", ".join(f"`{name}` {value}" for name, value in facts.get("options", {}).items())
    needs = ["rewind checkpoint"] if facts.get("rewinds") else []
    needs += ["initial seed"] if facts["starts_from"] == "initial" else []
    needs += ["recipe"] if facts.get("trains", True) else []
    return found.name, options, f"{facts['scores']} weights", ", ".join(needs)


#: Kind to its registry, the headings of its columns besides the description, and the function that makes a row.
_TABLES: dict[str, tuple[Registry[object], Row, Callable[[Definition], Row]]] = {
    "criteria": (CRITERIA, ("criterion", "scores", "reads records", "citation"), _criterion_row),
    "granularities": (GRANULARITIES, ("granularity", "the sparsity is a fraction of"), _granularity_row),
    "scopes": (SCOPES, ("scope", "layers compete"), _scope_row),
    "schedules": (SCHEDULES, ("schedule", "options", "final scores from", "needs"), _schedule_row),
}


def render_table(kind: str) -> str:
    """Render the table of one kind as Markdown.

    Args:
        kind: `criteria`, `granularities`, `scopes` or `schedules`.

    Example:
        >>> print(next(line for line in render_table("scopes").splitlines() if "`layer`" in line))
        | `layer` | The same fraction of every layer. | no |
    """
    registry, (name, *headings), make_row = _TABLES[kind]
    rows = []
    for found in registry.definitions():
        own, *cells = make_row(found)
        rows.append((f"`{own}`", found.summary.replace("]_", "]"), *cells))
    return render_rows((name, "what it does", *headings), rows)


def update_page(text: str) -> str:
    """Replace the generated tables of a page: what is between `<!-- generated: KIND -->` and `<!-- end -->`.

    Example:
        >>> page = "Scopes:\\n\\n<!-- generated: scopes -->\\nempty\\n<!-- end -->\\n"
        >>> "empty" in page, "empty" in update_page(page), "One threshold over all layers" in update_page(page)
        (True, False, True)
    """
    return replace_tables(text, render_table)
