"""Generates docs/methods.md from the registry, without importing the methods. `make pages` writes it."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Iterable

from expunge.core.outcome import GUARANTEES
from expunge.core.registry import METHODS

from .registry import method_table, read_facts, read_options
from .space import describe_domain, read_space

_HEAD = """\
# Methods

This page is generated from the registry of methods; do not edit it. `make pages` writes it again.

[concepts.md](concepts.md#guarantees) explains the guarantees, and [adding-a-method.md](adding-a-method.md) how to write
a method. Every outcome has its own guarantee, which can be weaker than that of its method. D_f is the forget set and
D_r the retain set. [Jia2023] is *Model Sparsity Can Simplify Machine Unlearning* (NeurIPS 2023), [Xiao2025] introduces
un-pruning, and [Li2025] certified patches (arXiv 2505.06520).
"""


def method_table_markdown() -> str:
    """Return the page: a table of all methods, then a section on each with its options and their defaults."""
    rows = method_table()
    lines = [_HEAD, *list_methods(), "", "| guarantee | meaning |", "|---|---|"]
    lines += [f"| {name} | {meaning} |" for name, meaning in GUARANTEES.items()]
    for row in rows:
        lines += ["", *_render_section(row["name"])]
    return "\n".join(lines) + "\n"


def list_methods(page: str = "", *, citations: bool = True) -> list[str]:
    """Return the lines of a table of all methods.

    Args:
        page: path of the page with the sections of the methods, for links; empty on that page.
        citations: with a column of citations.
    """
    heads = ["method", "guarantee", "what it does", *(["citation"] if citations else [])]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    rows = method_table()
    anchors = make_anchors(["Methods", *(row["name"] for row in rows)])[1:]
    for row, anchor in zip(rows, anchors, strict=True):
        cells = [f"[{row['name']}]({page}#{anchor})", row["guarantee"], row["summary"], row["citation"]]
        lines.append("| " + " | ".join(_escape_cell(text) for text in cells[: len(heads)]) + " |")
    return lines


def make_anchors(headings: Iterable[str]) -> list[str]:
    """The anchors of the headings of a page, as GitHub makes them: repeated ones are numbered.

    >>> make_anchors(["NegGrad", "NegGrad+", "l1-sparse", "my method"])
    ['neggrad', 'neggrad-1', 'l1-sparse', 'my-method']
    """
    found: list[str] = []
    counts: Counter[str] = Counter()
    for heading in headings:
        slug = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        found.append(f"{slug}-{counts[slug]}" if counts[slug] else slug)
        counts[slug] += 1
    return found


def _render_section(name: str) -> list[str]:
    found, (guarantee, citation) = read_options(name), read_facts(name)
    prose, _ = _parse_docstring(found.docs[-1])
    lines = [f"## {name}", "", prose, "", f"Guarantee: {guarantee}, {GUARANTEES[guarantee]}. "]
    lines[-1] += f"Citation: {citation}."
    if METHODS.describe(name).facts.get("corrects") is True:
        lines[-1] += " It supports corrections ([data.md](data.md#corrections))."
    if found.fields:
        meanings = _read_meanings(found.docs)
        lines += ["", "| option | default | meaning |", "|---|---|---|"]
        for field in found.fields:
            cells = (f"`{field.name}`", f"`{field.default}`", meanings.get(field.name, "see above"))
            lines.append("| " + " | ".join(_escape_cell(text) for text in cells) + " |")
    space = read_space(name)
    if space:
        searched = "; ".join(f"`{option}` {describe_domain(domain)}" for option, domain in space.items())
        lines += ["", f"[Tuning](tuning.md) searches {searched}."]
    return lines


def _escape_cell(text: str) -> str:
    return text.replace("|", "\\|")


def _read_meanings(docs: Iterable[str]) -> dict[str, str]:
    """Read the meanings of options from the docstrings of a class and its bases; those of the class take precedence."""
    found: dict[str, str] = {}
    for doc in docs:
        found.update(_parse_docstring(doc)[1])
    return found


def _parse_docstring(doc: str) -> tuple[str, dict[str, str]]:
    """Split a docstring into its prose and the entries of its section `Attributes`, by name."""
    prose, _, rest = doc.partition("\nAttributes:\n")
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
