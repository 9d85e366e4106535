"""The page `docs/methods.md`, made from the registry: `expunge methods --style markdown > docs/methods.md`."""

from __future__ import annotations

import inspect
import re
import textwrap

from expunge.core.outcome import GUARANTEES

from .base import Method, method_class, method_table, options_of

_HEAD = """\
# Methods

This page is generated from the registry of methods; do not edit it. To make it anew:

```sh
expunge methods --style markdown > docs/methods.md
```

What a guarantee means is in [concepts.md](concepts.md#guarantees); how to write a method, in
[adding-a-method.md](adding-a-method.md). The outcome of a run states its own guarantee, which can be weaker than the
method's (below).
"""


def method_table_markdown() -> str:
    """The whole page: a table of all methods, then for each what it does and its options with their defaults."""
    rows = method_table()
    lines = [_HEAD, "| method | guarantee | what it does | source |", "|---|---|---|---|"]
    for row in rows:
        cells = (f"[{row['name']}](#{row['name'].lower()})", row["guarantee"], row["summary"], row["source"])
        lines.append("| " + " | ".join(_cell(text) for text in cells) + " |")
    lines += ["", "| guarantee | meaning |", "|---|---|"]
    lines += [f"| {name} | {meaning} |" for name, meaning in GUARANTEES.items()]
    for row in rows:
        lines += ["", *_section(method_class(row["name"]))]
    return "\n".join(lines) + "\n"


def _section(cls: type[Method]) -> list[str]:
    prose, _ = _documented(cls)
    lines = [f"## {cls.name}", "", prose, "", f"Guarantee: {cls.guarantee}, {GUARANTEES[cls.guarantee]}. "]
    lines[-1] += f"Source: {cls.source}."
    fields = options_of(cls)
    if fields:
        known = _meanings(cls)
        lines += ["", "| option | default | meaning |", "|---|---|---|"]
        for field in fields:
            cells = (f"`{field.name}`", f"`{field.default}`", known.get(field.name, "see the text above"))
            lines.append("| " + " | ".join(_cell(text) for text in cells) + " |")
    return lines


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _meanings(cls: type[Method]) -> dict[str, str]:
    """What the docstrings of a class and those above it say about its options; the class itself has the last word."""
    found: dict[str, str] = {}
    for ancestor in reversed(cls.__mro__):
        found.update(_documented(ancestor)[1])
    return found


def _documented(cls: type) -> tuple[str, dict[str, str]]:
    """A docstring as prose, and its section `Attributes` by name."""
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
