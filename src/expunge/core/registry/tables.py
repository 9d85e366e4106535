"""Tables of the documentation that are generated from registries: Markdown rows, between two marks on a page."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from expunge.core.errors import unknown_name_hint

from .registry import Registry

#: A table, between two marks, with the kind as its name.
_TABLE = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def render_rows(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Render a Markdown table.

    Example:
        >>> print(render_rows(("name", "what it does"), [("`a`", "x | y")]))
        | name | what it does |
        | --- | --- |
        | `a` | x \\| y |
    """
    return "\n".join(_join(row) for row in (head, ["---"] * len(head), *rows))


def _join(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def replace_tables(text: str, render: Callable[[str], str]) -> str:
    """Replace the generated tables of a page: what is between `<!-- generated: KIND -->` and `<!-- end -->`.

    Args:
        text: the page.
        render: makes the table of a kind.

    Example:
        >>> replace_tables("<!-- generated: scopes -->\\nold\\n<!-- end -->\\n", str.upper).splitlines()[2]
        'SCOPES'
    """
    return _TABLE.sub(lambda match: f"{match[1]}\n{render(match[2])}\n\n{match[3]}", text)


def choose_rows(rows: list[dict[str, Any]], names: Sequence[str], registry: Registry[Any]) -> list[dict[str, Any]]:
    """The rows of some entries, in the order of the names; all rows if none is named.

    Args:
        rows: with the key `name`.
        names: names in upper or lower case.
        registry: the entries.

    Raises:
        ExpungeError: (of the registry's class) a name is unknown; the hint has the nearest one.

    Example:
        >>> from expunge.core.registry import METHODS
        >>> choose_rows([{"name": "FT"}, {"name": "GA"}], ["ga"], METHODS)
        [{'name': 'GA'}]
    """
    found = {row["name"].casefold(): row for row in rows}
    for name in names:
        if name.casefold() not in found:
            hint = unknown_name_hint(name, [row["name"] for row in rows])
            raise registry.error(f"unknown {registry.kind} {name!r}", hint=hint)
    return [found[name.casefold()] for name in names] if names else rows
