"""The committed studies: plans load, result files belong to them, tables are what the result files say."""

from __future__ import annotations

import importlib.util
import json
import runpy
from pathlib import Path

import pytest

from expunge.experiments import (
    load_plan,
    read_results,
    render_curves,
    render_figure,
    render_ranks,
    render_sweep,
    render_table,
)

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
    if comment.startswith("benchmarks/"):
        script = runpy.run_path(str(PLANS.parent / "benchmarks" / f"{path.stem}_figure.py"))
        assert path.read_text() == script["draw"](json.loads((PLANS.parent / comment).read_text()))
        return
    name, score, *chosen = comment.split("; ")
    before, after = chosen, []
    kind = next((item for item in chosen if item in ("curves", "ranks") or item.startswith("over=")), "")
    if kind:
        before, after = chosen[: chosen.index(kind)], chosen[chosen.index(kind) + 1 :]
    only: dict[str, list[str]] = {}
    for item in before:
        axis, _, label = item.partition("=")
        only.setdefault(axis, []).append(label)
    results, score = read_results(PLANS / name), score.removeprefix("score=")
    if kind == "ranks":
        files = [results, *(read_results(PLANS / item.removeprefix("also=")) for item in after)]
        drawn = render_ranks(files, score, only=only, comment=comment)
    elif kind == "curves":
        curves = load_plan(PLANS / name.replace(".results.json", ".yaml")).curves
        log = [item.removeprefix("log=") for item in after]
        drawn = render_curves(results, score, curves=curves, only=only, log=log, comment=comment)
    elif kind:
        log = [item.removeprefix("log=") for item in after]
        drawn = render_sweep(results, score, kind.removeprefix("over="), only=only, log=log, comment=comment)
    else:
        drawn = render_figure(results, score, only=only, comment=comment)
    assert path.read_text() == drawn


def test_the_ranks_in_the_docs_are_those_of_the_result_files() -> None:
    path = PLANS.parent / ".ci/pages.py"
    spec = importlib.util.spec_from_file_location("pages", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (PLANS.parent / "docs/comparison.md").read_text()
    assert page.count("<!-- ranks: ") >= 2
    assert module.update_ranks(page, PLANS) == page


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


def test_the_decay_of_replay_in_the_docs_is_that_of_the_result_file() -> None:
    runs = json.loads((PLANS.parent / "benchmarks/results/replay_decay.json").read_text())["runs"]
    page = (PLANS.parent / "docs/replay-theory.md").read_text()
    table = [line for line in page.partition("<!-- replay_decay: error -->")[2].splitlines() if line.startswith("| ")]
    networks = {"MLP": "digits", "LeNet-5": "lenet5", "small CNN": "small-cnn"}
    assert len(table) == 1 + len(runs) == 1 + 6 * len(networks)
    for line in table[1:]:
        network, forget, schedule, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        run = runs[f"{networks[network]}, {schedule}, {forget}"]
        assert run["seeds"] == [0, 1, 2]
        last = run["epochs"][-1]
        for part, cell in zip((0.1, 0.2, 0.4, 0.6), cells, strict=True):
            t = round(part * last)
            fraction = sum(run["rates"][: t + 1]) / sum(run["rates"])
            assert cell == f"{run['layers']['all']['error'][t]:.2f} ({fraction:.2f})", (line, t)
    errors = [error for run in runs.values() for error in run["layers"]["all"]["error"]]
    assert max(errors) <= 1.0, "the page says so"
    above = {
        key: max(
            error - 1 + sum(run["rates"][: t + 1]) / sum(run["rates"])
            for t, error in zip(run["epochs"], run["layers"]["all"]["error"], strict=True)
        )
        for key, run in runs.items()
    }
    assert f"{max(above.values()):.2f}" == "0.18", "the page says so"
