"""Plans that run in parts (`only`): what is run, and what is kept of an earlier result file."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
from laboratory import Lab

from expunge.core.errors import ConfigError, FileError
from expunge.experiments import PlanRun, load_plan, read_results, render_table, run_plan


def go(lab: Lab, *seeds: str, **options: Any) -> PlanRun:
    only = {"seed": list(seeds)} if seeds else None
    return run_plan(load_plan(lab.plan), store=lab.store, stages=lab.stages, only=only, **options)


def drop_runs(results: dict[str, Any]) -> dict[str, Any]:
    """Results without when and for how long they were computed."""
    cells = [{k: v for k, v in cell.items() if k not in ("stage_seconds", "finished")} for cell in results["cells"]]
    return {**{k: v for k, v in results.items() if k != "made"}, "cells": cells}


@pytest.mark.parametrize("workers", [1, 2])
def test_parts_on_two_machines_give_the_results_of_one_run(lab: Lab, workers: int) -> None:
    whole = run_plan(load_plan(lab.plan), store=lab.root / "whole", stages=lab.stages, results=lab.root / "w.json")
    first = go(lab, "0", workers=workers)
    assert [cell["state"] for cell in first.results["cells"]] == ["finished", "missing"] * 6
    assert first.computed == first.total < whole.total
    assert "kept" not in first.results["made"]
    shutil.rmtree(lab.store)  # the second machine has an empty store, and the committed result file
    second = go(lab, "1", workers=workers)
    assert second.computed == second.total == first.total
    assert drop_runs(second.results) == drop_runs(whole.results)
    assert second.results["made"]["kept"] == [first.results["made"]]
    assert second.results["claims"] == whole.results["claims"]
    again = read_results(second.path)
    assert drop_runs(again).items() >= drop_runs(second.results).items()
    assert render_table(again).count("Run from ") == 2


def test_a_third_part_keeps_the_runs_of_both(lab: Lab) -> None:
    lab.plan.write_text(lab.plan.read_text().replace("seed: [0, 1]", "seed: [0, 1, 2]"))
    parts = []
    for seed in ("0", "1", "2"):
        parts.append(go(lab, seed).results["made"])
        shutil.rmtree(lab.store)
    assert [part["stages"] for part in parts[2]["kept"]] == [part["stages"] for part in parts[:2]]
    assert all("kept" not in part for part in parts[2]["kept"])
    assert all(cell["state"] == "finished" for cell in read_results(load_plan(lab.plan).results_path)["cells"])


def test_what_is_in_the_store_comes_from_the_store(lab: Lab) -> None:
    go(lab, "0")
    path = load_plan(lab.plan).results_path
    body = json.loads(path.read_text())
    body["cells"][0]["scores"]["UA"] = 12.5
    path.write_text(json.dumps(body))
    found = go(lab, "1").results
    assert found["cells"][0]["scores"]["UA"] != 12.5
    assert "kept" not in found["made"]
    whole = go(lab).results  # without `only`, the file is not read
    assert whole == found


def test_references_run_with_their_cells(lab: Lab) -> None:
    run = run_plan(
        load_plan(lab.plan), store=lab.store, stages=lab.stages, only={"method": ["FT"], "sparsity": ["dense"]}
    )
    finished = {tuple(c["labels"].values()) for c in run.results["cells"] if c["state"] == "finished"}
    assert finished == {("dense", "random", method, seed) for method in ("Retrain", "FT") for seed in ("0", "1")}


def test_cells_of_another_plan_are_not_kept(lab: Lab) -> None:
    go(lab, "0")
    shutil.rmtree(lab.store)
    lab.plan.write_text(lab.plan.read_text().replace("epochs: 2", "epochs: 3"))
    said: list[str] = []

    class Reporter:
        def __getattr__(self, name: str) -> Any:
            return said.append if name == "log" else lambda *arguments, **options: None

    found = go(lab, "1", reporter=Reporter())
    assert [cell["state"] for cell in found.results["cells"]] == ["missing", "finished"] * 6
    assert any("its cells are not kept" in line for line in said)


def test_wrong_selections_and_files(lab: Lab) -> None:
    plan = load_plan(lab.plan)
    for only, message in (
        ({"sed": ["0"]}, "the plan has no axis 'sed'"),
        ({"seed": ["2"]}, "the axis seed has no label '2'"),
        ({"seed": []}, "no cell with these labels"),
    ):
        with pytest.raises(ConfigError, match=message):
            run_plan(plan, store=lab.store, stages=lab.stages, only=only)
    plan.results_path.write_text("{")
    with pytest.raises(FileError, match=r"tiny\.results\.json"):
        go(lab, "0")
    assert lab.started() == []
