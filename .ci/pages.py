"""Write what is generated from the registry of methods: docs/methods.md, and the table in README.md."""

from __future__ import annotations

import re
from pathlib import Path

from expunge.methods.docs_page import list_methods, method_table_markdown

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Rewrite the page and the table."""
    (ROOT / "docs" / "methods.md").write_text(method_table_markdown(), encoding="utf-8")
    readme = ROOT / "README.md"
    table = "\n".join(list_methods("docs/methods.md", citations=False)) + "\n"
    text = readme.read_text(encoding="utf-8")
    new = re.sub(r"(?<=<!-- methods -->\n)(?:\|.*\n)+", lambda match: table, text)
    readme.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
