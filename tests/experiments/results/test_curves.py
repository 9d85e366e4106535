"""Figures over passes: points are at the numbers of the table, bars and bands at intervals, names do not overlap."""

from __future__ import annotations

import copy
import itertools
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import t

from expunge.cli.app import run as run_command
from expunge.core.errors import ConfigError, FileError
from expunge.experiments import load_plan, read_results, render_curves, write_results
from expunge.experiments.results.figures.lines import COLOURS, LINES, spread_out
from expunge.experiments.results.schema import check_results
from expunge.experiments.results.summary import make_sections

SVG = "{http://www.w3.org/2000/svg}"
CURVES = {"FT": {"method": ["FT 4", "FT 1"]}, "Replay": {"method": ["Replay 1", "Replay 3", "Replay 10"]}}
PASSES = {"RR": 20.0, "RR rerun": 20.0, "FT 1": 1.0, "FT 4": 4.0, "Replay 1": 2.0, "Replay 3": 4.0, "Replay 10": 7.0}
VALUES = {"RR": 0.0, "RR rerun": 0.06, "FT 1": 0.9, "FT 4": 0.7, "Replay 1": 0.8, "Replay 3": 0.3, "Replay 10": 0.1}


def results() -> dict[str, Any]:
    """Two families of methods at several costs, a rerun, three seeds, two cases; numbers drawn with a seed."""
    rng = np.random.default_rng(0)
    cells: list[dict[str, Any]] = []
    for case, seed in itertools.product(("a", "b"), ("0", "1", "2")):
        first = len(cells)
        for method, value in VALUES.items():
            noise = float(rng.uniform(0.9, 1.1))
            scores = {
                "KL on D_f": (1.0 if case == "a" else 0.5) * value * noise,
                "UA": 10.0 + 20 * noise - value,
                "Passes": PASSES[method],
            }
            cell = {"labels": {"task": case, "method": method, "seed": seed}, "method": method, "sparsity": 0.9,
                    "scores": scores, "reference": first, "is_reference": method == "RR", "state": "finished",
                    "cost": {"passes": PASSES[method]}}  # fmt: skip
            if method != "RR":
                cell["passes_fraction"] = PASSES[method] / PASSES["RR"]
            cells.append(cell)
    axes = [
        {"name": "task", "role": "case", "labels": ["a", "b"]},
        {"name": "method", "role": "method", "labels": list(VALUES)},
        {"name": "seed", "role": "replicate", "labels": ["0", "1", "2"]},
    ]
    return {
        "plan": {"name": "toy", "description": "", "file": "toy.yaml", "hash": "0" * 64}, "axes": axes, "cells": cells,
        "reference": "RR", "rerun": "RR rerun", "columns": ["KL on D_f", "UA"], "curves": CURVES, "claims": [],
        "scores": {}, "passes_limit": 1.0, "made": {"stages": 0},
    }  # fmt: skip


class Panel:
    """What a drawn panel shows, read back through its tick labels."""

    def __init__(self, root: ET.Element, case: str, log: tuple[str, ...] = ()) -> None:
        texts = list(root.iter(f"{SVG}text"))
        heads = [x for x in texts if x.text == case and x.get("class", "").startswith("head")]
        assert len(heads) == 1
        self.left, self.top = float(heads[0].attrib["x"]), float(heads[0].attrib["y"])
        self.root = root
        ticks = [x for x in texts if re.fullmatch(r"-?\d+(\.\d+)?", x.text or "")]
        below = [x for x in ticks if self.is_inside(x) and float(x.attrib["y"]) > self.top + 225]
        beside = [x for x in ticks if self.left - 62 < float(x.attrib["x"]) < self.left - 2]
        beside = [x for x in beside if self.top < float(x.attrib["y"]) < self.top + 225]
        self.x = self.scale({float(x.attrib["x"]): float(x.text or "") for x in below}, "x" in log)
        # the baseline of a tick label is below its tick, by the same distance for each
        self.y = self.scale({float(x.attrib["y"]): float(x.text or "") for x in beside}, "y" in log)

    def is_inside(self, element: ET.Element) -> bool:
        x, y = float(element.attrib["x"]), float(element.attrib["y"])
        return self.left - 15 <= x <= self.left + 265 and self.top <= y <= self.top + 240

    @staticmethod
    def scale(ticks: dict[float, float], log: bool) -> Callable[[float], float]:
        assert len(ticks) >= 3
        places = np.array(sorted(ticks))
        numbers = np.array([ticks[place] for place in places])
        shown = np.log(numbers) if log else numbers
        slope, start = np.polyfit(places, shown, 1)
        assert shown == pytest.approx(slope * places + start, abs=0.02 * abs(np.ptp(shown)))
        return lambda place: float(np.exp(slope * place + start) if log else slope * place + start)

    def named(self, css: str) -> list[ET.Element]:
        return [e for e in self.root.iter() if e.get("class") == css]

    def points(self) -> dict[str, tuple[float, float]]:
        """Tooltip to position, of the points of this panel."""
        found = {}
        for group in self.named("point"):
            use, title = group.find(f"{SVG}use"), group.find(f"{SVG}title")
            assert use is not None
            assert title is not None
            if self.is_inside(use):
                found[str(title.text)] = (float(use.attrib["x"]), float(use.attrib["y"]))
        return found

    def lines(self, css: str) -> list[np.ndarray]:
        """The vertices of the lines of this class in this panel."""
        paths = [np.array(re.findall(r"(-?[\d.]+) (-?[\d.]+)", e.attrib["d"]), dtype=float) for e in self.named(css)]
        return [p for p in paths if self.left - 5 <= p[0, 0] <= self.left + 255 and 0 < p[0, 1] - self.top < 230]


def summaries(body: dict[str, Any], case: str) -> dict[str, Any]:
    section = next(s for s in make_sections(body) if s.case == {"task": case})
    return {method: row["90 %"]["KL on D_f"] for method, row in section.rows.items()}


@pytest.mark.parametrize("log", [(), ("y",), ("x", "y")])
@pytest.mark.parametrize("case", ["a", "b"])
def test_points_are_at_the_numbers_of_the_table(case: str, log: tuple[str, ...]) -> None:
    body = results()
    panel = Panel(ET.fromstring(render_curves(body, "KL on D_f", log=log)), case, log)
    table, points = summaries(body, case), panel.points()
    assert len(points) == 5
    rerun = panel.lines("rerun")[0]
    # heights are measured from the line of the reruns, whose number is known
    level = table["RR rerun"].mean
    offset = rerun[0, 1]
    for text, (x, y) in points.items():
        method = text.partition(":")[0]
        assert panel.x(x) == pytest.approx(PASSES[method] / 20, rel=0.02), method
        drop = panel.y(y) / panel.y(offset) * level if "y" in log else panel.y(y) - panel.y(offset) + level
        assert drop == pytest.approx(table[method].mean, rel=0.02, abs=0.003), method
        assert f", {table[method].mean:.4g} [" in text
    chains = panel.lines("curve")
    assert [len(chain) for chain in chains] == [2, 3]
    assert {tuple(vertex) for chain in chains for vertex in chain.round(1)} == {
        tuple(np.round(point, 1)) for point in points.values()
    }
    assert all((np.diff(chain[:, 0]) > 0).all() for chain in chains), "lines go from few passes to many"


def test_bars_and_band_are_the_t_intervals() -> None:
    body = results()
    panel = Panel(ET.fromstring(render_curves(body, "KL on D_f")), "a")
    cells = [cell for cell in body["cells"] if cell["labels"]["task"] == "a"]
    values = {m: [cell["scores"]["KL on D_f"] for cell in cells if cell["method"] == m] for m in VALUES}
    half = {m: t.ppf(0.975, 2) * np.std(v, ddof=1) / np.sqrt(3) for m, v in values.items()}
    edge = panel.top + 28  # of the panel: bars are cut off there
    for text, (x, y) in panel.points().items():
        (bar,) = [b for b in panel.lines("interval") if b[0, 0] == x and b[:, 1].min() <= y <= b[:, 1].max()]
        low, high = panel.y(bar[:, 1].max()), panel.y(bar[:, 1].min())
        method = text.partition(":")[0]
        centre = panel.y(y)
        assert centre - low == pytest.approx(half[method], abs=0.004), method
        if bar[:, 1].min() > edge + 0.5:
            assert high - centre == pytest.approx(half[method], abs=0.004), method
    assert any(bar[:, 1].min() > edge + 0.5 for bar in panel.lines("interval"))
    (band,) = panel.lines("band")
    top, bottom = panel.y(band[:, 1].min()), panel.y(band[:, 1].max())
    assert (top - bottom) / 2 == pytest.approx(half["RR rerun"], rel=0.1)
    (rerun,) = panel.lines("rerun")
    assert panel.y(rerun[0, 1]) == pytest.approx((top + bottom) / 2, abs=0.002)
    assert panel.lines("target") == [], "a distance to the reference has no value of the reference"


def test_a_score_of_the_reference_has_its_line() -> None:
    body = results()
    panel = Panel(ET.fromstring(render_curves(body, "UA")), "b")
    own = np.mean([c["scores"]["UA"] for c in body["cells"] if c["is_reference"] and c["labels"]["task"] == "b"])
    (target,) = panel.lines("target")
    (rerun,) = panel.lines("rerun")
    other = np.mean(
        [c["scores"]["UA"] for c in body["cells"] if c["method"] == "RR rerun" and c["labels"]["task"] == "b"]
    )
    assert panel.y(target[0, 1]) - panel.y(rerun[0, 1]) == pytest.approx(own - other, abs=0.05)
    svg = render_curves(body, "gap:UA")
    assert "gap of UA %" in svg
    assert 'class="target' not in svg


def test_names_do_not_overlap_and_stay_in_order() -> None:
    body = results()
    for cell in body["cells"]:
        if not cell["is_reference"]:
            cell["scores"]["KL on D_f"] = 0.5 + 1e-4 * list(VALUES).index(cell["method"])
    root = ET.fromstring(render_curves(body, "KL on D_f"))
    labels = [x for x in root.iter(f"{SVG}text") if x.text in ("FT", "Replay", "retrained again")]
    assert len(labels) == 6
    first = sorted(labels, key=lambda x: float(x.attrib["x"]))[:3]
    heights = {str(x.text): float(x.attrib["y"]) for x in first}
    assert sorted(heights, key=lambda name: -heights[name]) == ["retrained again", "FT", "Replay"]
    assert np.diff(sorted(heights.values())).min() >= 12.9
    rng = np.random.default_rng(0)
    for count in (1, 2, 7):
        wanted = np.sort(rng.uniform(0, 1, count))
        found = np.array(spread_out(wanted.tolist(), 0.07))
        assert (np.diff(found) >= 0.07 - 1e-12).all()
        assert found.max() <= 1.0
    assert spread_out([0.1, 0.5, 0.9], 0.07) == [0.1, 0.5, 0.9], "nothing moves without need"


def test_colours_are_readable_on_light_and_dark_pages() -> None:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return float(np.dot([0.2126, 0.7152, 0.0722], linear))

    lines = [COLOURS[f"curve_{number}"] for number in range(1, LINES + 1)]
    assert len(set(lines)) == LINES
    for colour in [*lines, COLOURS["ink"]]:
        for page in ("#ffffff", "#0d1117"):
            one, other = sorted((luminance(colour), luminance(page)))
            assert (other + 0.05) / (one + 0.05) > 4.0, (colour, page)


def test_the_text_for_screen_readers_and_the_comment() -> None:
    body = results()
    svg = render_curves(body, "KL on D_f", only={"task": ["b"]}, comment="toy; KL")
    root = ET.fromstring(svg)
    text = root.findtext(f"{SVG}desc") or ""
    table = summaries(body, "b")
    assert "<!-- toy; KL -->" in svg
    for method in PASSES.keys() - {"RR", "RR rerun"}:
        assert f"{method}: passes {PASSES[method] / 20:.3g}, {table[method].mean:.4g} [" in text
    assert f"retrained again: {table['RR rerun'].mean:.4g} [" in text
    assert text.startswith("b, 90 %: ")
    assert render_curves(body, "KL on D_f", only={"task": ["b"]}, comment="toy; KL") == svg


def test_wrong_curves_are_errors(tmp_path: Path) -> None:
    body = results()
    for curves, message in (
        ({}, "the plan has no curves"),
        ({str(n): {"method": "FT 1"} for n in range(9)}, "9 curves, more than 8"),
        ({"FT": {"methods": "FT 1"}}, "no axis 'methods'"),
        ({"FT": {"method": "FT 2"}}, "no label 'FT 2'"),
    ):
        with pytest.raises(ConfigError, match=message):
            render_curves(body, "KL on D_f", curves=curves)
    with pytest.raises(ConfigError, match="no cell of the curves has the score 'KL on D'"):
        render_curves(body, "KL on D")
    broken = copy.deepcopy(body)
    for cell in broken["cells"]:
        cell["scores"]["KL on D_f"] *= cell["method"] != "FT 4"
    with pytest.raises(ConfigError, match="a logarithmic axis cannot show"):
        render_curves(broken, "KL on D_f", log=["y"])
    check_results(body, "toy")
    write_results(tmp_path / "toy.results.json", body)
    assert read_results(tmp_path / "toy.results.json")["curves"] == CURVES
    with pytest.raises(FileError, match="curves"):
        check_results({**body, "curves": {"FT": 3}}, "toy")


PLAN = """\
name: toy
base:
  data: {source: digits}
  model: {name: mlp}
  training: {recipe: one-cycle, epochs: 2}
  forget: {by: random, count: 10}
variants:
  method:
    RR: {method: {name: Retrain}}
    FT 1: {method: {name: FT, options: {epochs: 1}}}
    FT 4: {method: {name: FT, options: {epochs: 4}}}
reference: RR
"""


def test_curves_of_a_plan_are_checked_and_are_not_in_its_hash(tmp_path: Path) -> None:
    path = tmp_path / "toy.yaml"
    path.write_text(PLAN)
    plain = load_plan(path)
    path.write_text(PLAN + "curves:\n  FT: {method: [FT 1, FT 4]}\n")
    plan = load_plan(path)
    assert plan.curves == {"FT": {"method": ["FT 1", "FT 4"]}}
    assert plan.hash == plain.hash
    path.write_text(PLAN + "curves:\n  FT: {method: [FT 1, FT 3]}\n")
    with pytest.raises(ConfigError, match="no label 'FT 3'") as caught:
        load_plan(path)
    assert "toy.yaml:13" in str(caught.value) or "toy.yaml:14" in str(caught.value)


def test_the_command_takes_the_curves_of_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body = results()
    del body["curves"]
    path = tmp_path / "toy.yaml"
    path.write_text(PLAN + "curves:\n  Fine-tuning: {method: [FT 1, FT 4]}\n")
    write_results(tmp_path / "toy.results.json", body)
    out = tmp_path / "toy.svg"
    command = ["bench", "figure", str(path), "--score", "KL on D_f", "--output", str(out)]
    assert run_command([*command, "--curves", "--log", "y"]) == 0
    text = out.read_text()
    assert "Fine-tuning" in text
    assert "<!-- toy.results.json; score=KL on D_f; curves; log=y -->" in text
    assert run_command([*command, "--log", "y"]) == 2
    assert "add --curves" in capsys.readouterr().err
    results_file = str(tmp_path / "toy.results.json")
    assert run_command(["bench", "figure", results_file, *command[3:], "--curves"]) == 2
    assert "the plan has no curves" in capsys.readouterr().err
