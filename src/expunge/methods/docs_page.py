"""Generates docs/methods.md from the registry: `expunge methods --style markdown > docs/methods.md`."""

from __future__ import annotations

import inspect
import re
import textwrap

from expunge.core.outcome import GUARANTEES

from .base import Method, method_class, method_table, options_of

_HEAD = """\
# Methods

This page is generated from the registry of methods; do not edit it. To regenerate it:

```sh
expunge methods --style markdown > docs/methods.md
```

[concepts.md](concepts.md#guarantees) explains the guarantees, and [adding-a-method.md](adding-a-method.md) how to write
a method. Every outcome has its own guarantee, which can be weaker than that of its method. D_f is the forget set and
D_r the retain set. [Jia2023] is *Model Sparsity Can Simplify Machine Unlearning* (NeurIPS 2023), [Xiao2025] introduces
un-pruning, and [Li2025] certified patches (arXiv 2505.06520).
"""


def method_table_markdown() -> str:
    """Return the page: a table of all methods, then a section on each with its options and their defaults."""
    rows = method_table()
    lines = [_HEAD, "| method | guarantee | what it does | citation |", "|---|---|---|---|"]
    for row in rows:
        cells = (f"[{row['name']}](#{row['name'].lower()})", row["guarantee"], row["summary"], row["citation"])
        lines.append("| " + " | ".join(_escape_cell(text) for text in cells) + " |")
    lines += ["", "| guarantee | meaning |", "|---|---|"]
    lines += [f"| {name} | {meaning} |" for name, meaning in GUARANTEES.items()]
    for row in rows:
        lines += ["", *_render_section(method_class(row["name"]))]
    return "\n".join(lines) + "\n"


def _render_section(cls: type[Method]) -> list[str]:
    prose, _ = _parse_docstring(cls)
    lines = [f"## {cls.name}", "", prose, "", f"Guarantee: {cls.guarantee}, {GUARANTEES[cls.guarantee]}. "]
    lines[-1] += f"Citation: {cls.citation}."
    fields = options_of(cls)
    if fields:
        meanings = _read_meanings(cls)
        lines += ["", "| option | default | meaning |", "|---|---|---|"]
        for field in fields:
            cells = (f"`{field.name}`", f"`{field.default}`", meanings.get(field.name, "see above"))
            lines.append("| " + " | ".join(_escape_cell(text) for text in cells) + " |")
    return lines


def _escape_cell(text: str) -> str:
    return text.replace("|", "\\|")


def _read_meanings(cls: type[Method]) -> dict[str, str]:
    """Read the meanings of options from the docstrings of a class and its bases; those of the class take precedence."""
    found: dict[str, str] = {}
    for ancestor in reversed(cls.__mro__):
        found.update(_parse_docstring(ancestor)[1])
    return found


def _parse_docstring(cls: type) -> tuple[str, dict[str, str]]:
    """Split a docstring into its prose and the entries of its section `Attributes`, by name."""
    prose, _, rest = inspect.cleandoc(cls.__dict__.get("__doc__") or "").partition("\nAttributes:\n")
    block = re.match(r"(?:[ ]+.*(?:\n|$))*", rest)
    section = block.group(0) if block else ""
    found = {}
    for entry in re.split(r"\n(?=\S)", textwrap.dedent(section).strip()):
        names, colon, meaning = entry.partition(":")
        if colon:
            text = " ".join(meaning.split()).rstrip(".")
            found.update({name.strip(): text for name in names.split(",")})
    after = rest[len(section) :].strip()
    return "\n\n".join(part for part in (prose.strip(), after) if part), found
