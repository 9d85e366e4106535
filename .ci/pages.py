"""Write what is generated from the registries: docs/methods.md, and tables in README.md and other pages of docs."""

from __future__ import annotations

import os
import re
from pathlib import Path

from expunge.data.registry import update_source_table
from expunge.evaluation.registry.docs_page import update_score_page
from expunge.methods.docs_page import list_methods, method_table_markdown
from expunge.sparsity.docs_page import update_page
from expunge.training.recipes.docs_page import update_page as update_recipe_page

ROOT = Path(__file__).parents[1]


def main(root: Path = ROOT) -> None:
    """Rewrite the page and the tables, without the plug-ins that happen to be installed."""
    os.environ["EXPUNGE_PLUGINS"] = "0"
    docs, readme = root / "docs", root / "README.md"
    (docs / "methods.md").write_text(method_table_markdown(), encoding="utf-8")
    table = "\n".join(list_methods("docs/methods.md", citations=False)) + "\n"
    text = readme.read_text(encoding="utf-8")
    readme.write_text(re.sub(r"(?<=<!-- methods -->\n)(?:\|.*\n)+", lambda match: table, text), encoding="utf-8")
    updates = {
        "data.md": update_source_table, "sparsity.md": update_page, "scores.md": update_score_page,
        "recipes.md": update_recipe_page,
    }  # fmt: skip
    for name, update in updates.items():
        page = docs / name
        page.write_text(update(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
