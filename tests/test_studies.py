"""The committed studies: plans load, result files belong to them, tables are what the result files say."""

from __future__ import annotations

from pathlib import Path

import pytest

from expunge.experiments import load_plan, read_results, render_table

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
