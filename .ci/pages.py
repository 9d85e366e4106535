"""Write what is generated from the registries: docs/methods.md, tables of README.md, docs/data.md, docs/sparsity.md."""

from __future__ import annotations

import os
import re
from pathlib import Path

from expunge.data.registry import update_source_table
from expunge.methods.docs_page import list_methods, method_table_markdown
from expunge.sparsity.docs_page import update_page

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Rewrite the pages and the table, without the plug-ins that happen to be installed."""
    os.environ["EXPUNGE_PLUGINS"] = "0"
    docs, readme = ROOT / "docs", ROOT / "README.md"
    (docs / "methods.md").write_text(method_table_markdown(), encoding="utf-8")
    table = "\n".join(list_methods("docs/methods.md", citations=False)) + "\n"
    text = readme.read_text(encoding="utf-8")
    readme.write_text(re.sub(r"(?<=<!-- methods -->\n)(?:\|.*\n)+", lambda match: table, text), encoding="utf-8")
    for page, update in ((docs / "sparsity.md", update_page), (docs / "data.md", update_source_table)):
        page.write_text(update(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
