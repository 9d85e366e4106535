"""The committed studies: plans load, result files belong to them, tables are what the result files say."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from expunge.experiments import load_plan, read_results, render_figure, render_table

PLANS = Path(__file__).parents[1] / "plans"


@pytest.mark.parametrize("path", sorted(PLANS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_result_file_is_that_of_the_plan(path: Path) -> None:
    plan = load_plan(path)
    results = read_results(plan.results_path)
    assert results["plan"]["hash"] == plan.hash
    assert all(cell["state"] == "finished" for cell in results["cells"])


@pytest.mark.parametrize("path", sorted(PLANS.glob("*.results.json")), ids=lambda path: path.stem)
def test_the_tables_are_those_of_the_result_file(path: Path) -> None:
    page = path.with_name(path.name.replace(".results.json", ".md"))
    assert page.read_text().strip() == render_table(read_results(path), "markdown").strip()


@pytest.mark.parametrize("path", sorted((PLANS.parent / "docs/figures").glob("*.svg")), ids=lambda path: path.stem)
def test_the_figures_are_those_of_the_result_file(path: Path) -> None:
    """The comment in the file says how it was made."""
    comment = next(line for line in path.read_text().splitlines() if line.startswith("<!-- ")).strip("<!-> ")
    name, score, *chosen = comment.split("; ")
    only: dict[str, list[str]] = {}
    for item in chosen:
        axis, _, label = item.partition("=")
        only.setdefault(axis, []).append(label)
    drawn = render_figure(read_results(PLANS / name), score.removeprefix("score="), only=only, comment=comment)
    assert path.read_text() == drawn


def test_the_limits_of_patches_in_the_docs_are_those_of_the_result_file() -> None:
    path = PLANS.parent / "benchmarks/patch_limits_table.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    body = json.loads(module.RESULT.read_text())
    page = (PLANS.parent / "docs/patches.md").read_text()
    for table in (module.changes, module.regions, module.executions):
        assert table(body) in page
