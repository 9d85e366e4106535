"""Pages of the documentation: their code blocks, following them, their tables."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
from pathlib import Path
from typing import Any

from expunge.cli.app import run

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of each code block."""
    return re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.S | re.M)


def short(text: str) -> str:
    """The same with two epochs wherever there are more."""
    return re.sub(r"((?:^|\W)epochs(?:=|: )|for epoch in range\()\d+", r"\g<1>2", text)


def command(line: str) -> None:
    """Run one line of a shell block."""
    words = shlex.split(line, comments=True)
    if words[0] == "expunge":
        assert run(words[1:]) == 0, line
    elif words[0] == "python":
        runpy.run_path(words[1], run_name="__main__")
    else:
        subprocess.run(["sh", "-c", line], check=True)


def follow(found: list[tuple[str, str]], given: dict[str, Any] | None = None) -> dict[str, Any]:
    """Do what a page says: write the files that it shows, run its commands and its Python; its names at the end.

    Args:
        found: the blocks.
        given: names that the page assumes.
    """
    names: dict[str, Any] = dict(given or {})
    for language, text in found:
        title = re.match(r"# ([\w-]+\.(?:py|yaml))\n", text)
        if title is not None:
            Path(title[1]).write_text(short(text))
        elif language == "python":
            exec(compile(short(text), "a snippet of the documentation", "exec"), names)
        elif language == "sh":
            for line in text.splitlines():
                command(line)
    return names


def first_table(text: str) -> list[list[str]]:
    """The cells of the first table of a page, without the row of dashes."""
    rows = re.search(r"(?:^\|.*\n)+", text, flags=re.M)
    assert rows is not None
    table = [re.split(r" (?<!\\)\| ", line.strip("| ")) for line in rows[0].splitlines()]
    return [row for row in table if not row[0].startswith("---")]
