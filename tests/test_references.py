"""The papers that are cited: every key stands on docs/references.md, once, and every page that is cited exists."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "references.md"
KEY = re.compile(r"\[([A-Z][A-Za-z]+(?:19|20)\d{2}[a-z]?)\]")
FILES = [
    path
    for pattern in ("src/**/*.py", "checker/src/**/*.py", "docs/**/*.md", "*.md", "checker/*.md", "benchmarks/*.py")
    for path in sorted(ROOT.glob(pattern))
]


def cited(files: Iterable[Path]) -> dict[str, str]:
    """Each key with a file that has it."""
    return {key: path.name for path in files for key in KEY.findall(path.read_text(encoding="utf-8"))}


def entries() -> list[str]:
    """The keys that references.md defines."""
    return re.findall(r"^- \*\*\[(\w+)\]\*\*", PAGE.read_text(encoding="utf-8"), flags=re.M)


def test_every_cited_key_has_one_entry() -> None:
    keys = cited(path for path in FILES if path != PAGE)
    assert len(keys) > 15
    assert {key: name for key, name in keys.items() if entries().count(key) != 1} == {}
    assert len(set(entries())) == len(entries())


def test_a_key_without_an_entry_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("As in [Nobody1999], and [a link](x.md), [RFC], [Jia2023]_.\n")
    assert cited([page]).keys() - set(entries()) == {"Nobody1999"}


def test_pages_that_are_not_in_the_repository_are_not_cited() -> None:
    """A Markdown page that the source names is in the repository (a bare name, as `papers.md`, is one of docs/)."""
    missing = {
        f"{path.name}: {name}"
        for path in (ROOT / "src").rglob("*.py")
        for name in re.findall(r"(?<![\w./<{*-])([\w./-]+\.md)\b", path.read_text(encoding="utf-8"))
        if not any((place / name).exists() for place in (ROOT, ROOT / "docs", ROOT / "checker"))
    }
    assert missing == set()
