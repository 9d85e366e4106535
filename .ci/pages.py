"""Write what is generated from the registries: docs/methods.md, and tables in README.md and other pages of docs;
and what is generated from result files: the ranks of docs/comparison.md and the tables of docs/claims.md."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from expunge.data.registry import update_source_table
from expunge.evaluation.registry.docs_page import update_score_page
from expunge.experiments import rank_methods, read_results, render_rank_table
from expunge.methods.docs_page import list_methods, method_table_markdown
from expunge.sparsity.docs_page import update_page
from expunge.training.recipes.docs_page import update_page as update_recipe_page

sys.path.insert(0, str(Path(__file__).parent))

from claims_page import update_claims

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
    page = docs / "comparison.md"
    if page.is_file():
        page.write_text(update_ranks(page.read_text(encoding="utf-8"), root / "plans"), encoding="utf-8")
    page = docs / "claims.md"
    if page.is_file():
        page.write_text(update_claims(page.read_text(encoding="utf-8"), root), encoding="utf-8")


def update_ranks(text: str, plans: Path) -> str:
    """Write the tables of ranks of a page again, each after its `<!-- ranks: PLAN PLAN axis=label -->`."""

    def make(found: re.Match[str]) -> str:
        names = [word for word in found[1].split() if "=" not in word]
        pairs = [word.split("=") for word in found[1].split() if "=" in word]
        results = [read_results(plans / f"{name}.results.json") for name in names]
        ranking = rank_methods(results, only={axis: [label.replace("_", " ")] for axis, label in pairs})
        return f"<!-- ranks: {found[1]} -->\n{render_rank_table(ranking)}\n"

    return re.sub(r"<!-- ranks: (.*) -->\n(?:\|.*\n)*", make, text)


if __name__ == "__main__":
    main()
