"""Lines over an axis of the plan: points are the means of the table, noise is beside them, retrained models always."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from expunge.cli.app import run as run_command
from expunge.core.errors import ConfigError
from expunge.experiments import render_sweep, write_results
from expunge.experiments.results.summary import make_sections

SVG = "{http://www.w3.org/2000/svg}"
SPARSITIES = {"dense": 0.0, "50 %": 0.5, "99 %": 0.99}
METHODS = ("Retrain", "again", "FT", "GA")


def results(again: bool = True) -> dict[str, Any]:
    """Two cases, three sparsities, three seeds; numbers drawn with a seed."""
    rng = np.random.default_rng(0)
    cells: list[dict[str, Any]] = []
    for case, sparsity, seed in itertools.product(("a", "b"), SPARSITIES, ("0", "1", "2")):
        first = len(cells)
        for place, method in enumerate(METHODS if again else [m for m in METHODS if m != "again"]):
            scores = {
                name: float(10 * place + 10 * SPARSITIES[sparsity] + rng.uniform(0, 2))
                for name in ("UA", "RA", "TA", "MIA-Efficacy")
            }
            own = cells[first]["scores"] if method != "Retrain" else scores
            scores["Disparity average"] = float(
                np.mean([abs(scores[name] - own[name]) for name in own if name in scores])
            )
            labels = {"task": case, "sparsity": sparsity, "method": method, "seed": seed}
            cell = {"labels": labels, "method": method, "sparsity": SPARSITIES[sparsity], "scores": scores,
                    "reference": first, "is_reference": method == "Retrain", "state": "finished",
                    "hashes": {"weights": f"{len(cells)}"}, "cost": {"passes": 1.0}}  # fmt: skip
            cells.append(cell)
    axes = [
        {"name": "task", "role": "case", "labels": ["a", "b"]},
        {"name": "sparsity", "role": "sparsity", "labels": list(SPARSITIES)},
        {"name": "method", "role": "method", "labels": list(METHODS)},
        {"name": "seed", "role": "replicate", "labels": ["0", "1", "2"]},
    ]
    return {
        "plan": {"name": "toy", "description": "", "file": "toy.yaml", "hash": "0" * 64}, "axes": axes, "cells": cells,
        "reference": "Retrain", "rerun": "again" if again else None,
        "columns": ["UA", "Disparity average"], "curves": {},
        "claims": [], "scores": {}, "passes_limit": 1.0, "made": {"stages": 0},
    }  # fmt: skip


def tips(svg: str) -> list[str]:
    root = ET.fromstring(svg)
    groups = [e for e in root.iter() if e.get("class") == "point"]
    return [str(title.text) for group in groups if (title := group.find(f"{SVG}title")) is not None]


def paths(svg: str, css: str) -> list[np.ndarray]:
    root = ET.fromstring(svg)
    found = [e.attrib["d"] for e in root.iter() if e.get("class") == css and "d" in e.attrib]
    return [np.array(re.findall(r"(-?[\d.]+) (-?[\d.]+)", path), dtype=float) for path in found]


@pytest.mark.parametrize("score", ["UA", "Disparity average"])
def test_points_are_the_means_of_the_table(score: str) -> None:
    body = results()
    svg = render_sweep(body, score, "sparsity")
    sections = make_sections(body)
    assert [section.case["task"] for section in sections] == ["a", "b"]
    expected = [
        f"{method}, {sparsity}, {section.rows[method][sparsity][score].mean:.4g}"
        for section in sections
        for method in ("FT", "GA")
        for sparsity in SPARSITIES
    ]
    assert [tip.partition(" [")[0] for tip in tips(svg)] == expected
    assert len(paths(svg, "curve")) == 4
    assert all((np.diff(path[:, 0]) > 50).all() for path in paths(svg, "curve")), (
        "one place a label, in order of the plan"
    )
    steps = [np.ptp(np.diff(path[:, 0])) for path in paths(svg, "curve")]
    assert max(steps) < 0.1, "labels are at equal distances"


def test_heights_are_on_one_scale_with_the_retrained_models() -> None:
    """FT, the reference and the rerun are 20, 0 and 10 points apart, up to the drawn noise."""
    body = results()
    svg = render_sweep(body, "UA", "sparsity")
    table = make_sections(body)[0].rows
    lines = {name: paths(svg, css)[0] for name, css in (("FT", "curve"), ("Retrain", "target"), ("again", "again"))}
    means = {name: np.array([table[name][s]["UA"].mean for s in SPARSITIES]) for name in lines}
    shown = np.concatenate([line[:, 1] for line in lines.values()])
    values = np.concatenate(list(means.values()))
    slope, start = np.polyfit(values, shown, 1)
    assert slope < 0
    assert shown == pytest.approx(slope * values + start, abs=0.3)
    (first, _) = paths(svg, "band")
    floors = [make_sections(body)[0].floor[s]["UA"] for s in SPARSITIES]
    heights = [np.ptp(first[np.isclose(first[:, 0], x, atol=0.5), 1]) for x in lines["Retrain"][:, 0]]
    assert heights == pytest.approx([2 * floor * -slope for floor in floors], abs=0.5)


def test_a_disparity_has_the_second_retrained_model_or_the_floor() -> None:
    with_again = render_sweep(results(), "Disparity average", "sparsity")
    assert len(paths(with_again, "again")) == 2
    assert not paths(with_again, "floor")
    assert not paths(with_again, "target"), "the reference has no distance to itself"
    without = render_sweep(results(again=False), "Disparity average", "sparsity")
    assert len(paths(without, "floor")) == 2
    assert "noise floor" in without
    assert "retrained again" not in without


def test_an_axis_of_cases_has_a_panel_for_every_sparsity() -> None:
    svg = render_sweep(results(), "UA", "task", only={"method": ["FT"]})
    heads = [e.text for e in ET.fromstring(svg).iter(f"{SVG}text") if e.get("class", "").startswith("head")]
    assert {head for head in heads if head in SPARSITIES} == set(SPARSITIES)
    assert [tip.partition(" [")[0].rpartition(",")[0] for tip in tips(svg)] == ["FT, a", "FT, b"] * 3
    assert len(paths(svg, "target")) == 3, "the reference is drawn beside any choice of methods"
    assert len(paths(svg, "again")) == 3


def test_wrong_choices_are_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body = results()
    for over, text in (
        ("method", "has methods or seeds"),
        ("seed", "has methods or seeds"),
        ("spars", "no axis 'spars'"),
    ):
        with pytest.raises(ConfigError, match=text):
            render_sweep(body, "UA", over)
    with pytest.raises(ConfigError, match="no cell has the score 'UAA'"):
        render_sweep(body, "UAA", "sparsity")
    with pytest.raises(ConfigError, match="no label '75 %'"):
        render_sweep(body, "UA", "sparsity", only={"sparsity": ["75 %"]})
    with pytest.raises(ConfigError, match="only the axis y"):
        render_sweep(body, "UA", "sparsity", log=["x"])
    many = [
        dict(cell, labels=cell["labels"] | {"method": f"{i}"}, method=f"{i}")
        for i in range(9)
        for cell in body["cells"][3:4]
    ]
    axes = [dict(a, labels=[*a["labels"], *map(str, range(9))]) if a["name"] == "method" else a for a in body["axes"]]
    with pytest.raises(ConfigError, match="more than 8"):
        render_sweep({**body, "cells": body["cells"] + many, "axes": axes}, "UA", "sparsity")
    write_results(tmp_path / "toy.results.json", body)
    out = tmp_path / "toy.svg"
    command = ["bench", "figure", str(tmp_path / "toy.results.json"), "--score", "UA", "--output", str(out)]
    assert run_command([*command, "--over", "sparsity", "--only", "method=FT", "--log", "y"]) == 0
    assert "<!-- toy.results.json; score=UA; method=FT; over=sparsity; log=y -->" in out.read_text()
    assert run_command([*command, "--over", "sparsity", "--ranks"]) == 2
    assert "choose one" in capsys.readouterr().err


def test_cells_without_a_method_are_lines_of_their_own() -> None:
    """Leakage, for example: every cell is its own reference, and there is nothing else to draw."""
    cells = [
        {"labels": {"copies": copies, "seed": seed}, "method": "leakage", "sparsity": 0.9, "reference": place,
         "is_reference": True, "state": "finished", "scores": {"Topology leakage": value}}
        for place, (copies, seed, value) in enumerate((("0", "0", 0.9), ("0", "1", 0.8), ("4", "0", 0.6)))
    ]  # fmt: skip
    axes = [{"name": "copies", "role": "case", "labels": ["0", "4"]},
            {"name": "seed", "role": "replicate", "labels": ["0", "1"]}]  # fmt: skip
    found = tips(render_sweep({"plan": {"name": "toy"}, "axes": axes, "cells": cells}, "Topology leakage", "copies"))
    assert [text.split(" ")[:3] for text in found] == [["leakage,", "0,", "0.85"], ["leakage,", "4,", "0.6"]]
