"""Figures of plans: marks are at the positions of the numbers, and wrong names are errors."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from expunge.core.errors import ConfigError
from expunge.experiments import render_figure

SVG = "{http://www.w3.org/2000/svg}"


def results() -> dict[str, Any]:
    """Two methods and a rerun of the reference, two seeds, two cases."""
    cells = []
    for case in ("a", "b"):
        for seed in ("0", "1"):
            first = len(cells)
            for method, value in (("R", 1.0), ("R rerun", 0.8), ("FT <x>", 0.2 if case == "a" else 0.6)):
                labels = {"seed": seed, "task": case, "method": method}
                scores = {"IoU": value + (0.02 if seed == "1" else 0.0)}
                cells.append(
                    {"labels": labels, "method": method, "sparsity": 0.9, "scores": scores, "reference": first,
                     "is_reference": method == "R", "state": "finished"}
                )  # fmt: skip
    axes = [
        {"name": "seed", "role": "replicate", "labels": ["0", "1"]},
        {"name": "task", "role": "case", "labels": ["a", "b"]},
        {"name": "method", "role": "method", "labels": ["R", "R rerun", "FT <x>"]},
    ]
    return {
        "plan": {"name": "toy"}, "axes": axes, "cells": cells, "rerun": "R rerun", "columns": ["IoU"],
        "scores": {"IoU": {"unit": ""}},
    }  # fmt: skip


def kind(element: ET.Element) -> str | None:
    return element.get("class")


def places(root: ET.Element, css: str) -> list[tuple[float, float]]:
    """Positions of the markers of this class, in the order of the file."""
    groups = [e for e in root.iter() if kind(e) == css]
    return [(float(u.attrib["x"]), float(u.attrib["y"])) for g in groups for u in g.iter(f"{SVG}use")]


def ends_of(path: ET.Element) -> list[float]:
    """The x coordinates of a straight line."""
    return [float(x) for x in re.findall(r"[ML](-?[\d.]+) ", path.attrib["d"])]


def axis(root: ET.Element) -> Callable[[float], float]:
    """The map from pixels to numbers, from the tick labels below the first panel."""
    labels = [t for t in root.iter(f"{SVG}text") if re.fullmatch(r"-?\d+(\.\d+)?", t.text or "")]
    row = [t for t in labels if t.attrib["y"] == labels[0].attrib["y"]]
    ticks = {float(t.attrib["x"]): float(t.text or "") for t in row}
    first, last = min(ticks), max(ticks)
    assert len(ticks) >= 3
    assert list(ticks.values()) == pytest.approx(
        [ticks[first] + (x - first) / (last - first) * (ticks[last] - ticks[first]) for x in ticks], abs=1e-3
    )
    return lambda x: ticks[first] + (x - first) / (last - first) * (ticks[last] - ticks[first])


def test_marks_are_at_the_numbers() -> None:
    root = ET.fromstring(render_figure(results(), "IoU", comment="toy"))
    large, small = places(root, "mean"), places(root, "seeds")
    assert len(large) == 6
    assert len(small) == 12
    scale = axis(root)
    expected = [1.0, 0.8, 0.2, 1.0, 0.8, 0.6]
    assert [scale(x) for x, _ in large] == pytest.approx([value + 0.01 for value in expected], abs=1e-3)
    seeds = [value + more for value in expected for more in (0, 0.02)]
    assert [scale(x) for x, _ in small] == pytest.approx(seeds, abs=1e-3)
    # rows of a panel are 17 apart, the second case lies below the first, means lie in the rows of their seeds
    heights = [y for _, y in large]
    assert [heights[1] - heights[0], heights[2] - heights[1], heights[4] - heights[3]] == [17, 17, 17]
    assert heights[3] > heights[2]
    assert [y for _, y in small] == [y for y in heights for _ in range(2)]


def test_intervals_and_the_line_of_the_rerun_reference() -> None:
    body = results()
    root = ET.fromstring(render_figure(body, "IoU"))
    scale = axis(root)
    ends = [[scale(float(x)) for x in ends_of(path)] for path in root.iter(f"{SVG}path") if kind(path) == "interval"]
    half = 12.706 * 0.02 / 2  # t(0.975, 1) * std / sqrt(2), std = 0.02 / sqrt(2)
    low, high = 0.2 - 0.04 * 0.82, 1.2 + 0.04 * 0.82  # nothing is drawn beyond the axis
    expected = [(max(low, v + 0.01 - half), min(high, v + 0.01 + half)) for v in (1.0, 0.8, 0.2, 1.0, 0.8, 0.6)]
    assert np.ravel(ends) == pytest.approx(np.ravel(expected), abs=1e-2)
    dashed = [path for path in root.iter(f"{SVG}path") if "stroke-dasharray" in path.attrib]
    assert [kind(path) for path in dashed] == ["rerun", "rerun"]
    assert [scale(ends_of(path)[0]) for path in dashed] == pytest.approx([0.81, 0.81], abs=1e-3)
    del body["rerun"]
    assert "stroke-dasharray" not in render_figure(body, "IoU")


def test_texts_name_the_cases_rows_and_score_once() -> None:
    root = ET.fromstring(render_figure(results(), "IoU", comment="toy"))
    texts = [t.text for t in root.iter(f"{SVG}text")]
    assert [text for text in texts if text in ("R", "R rerun", "FT <x>")] == 2 * ["R", "R rerun", "FT <x>"]
    assert [t.text for t in root.iter(f"{SVG}text") if kind(t) == "head"] == ["a", "90 %", "b", "90 %"]
    assert texts.count("IoU with reference") == 2
    assert root.findtext(f"{SVG}title") == "toy: IoU with reference"
    words = root.findtext(f"{SVG}desc")
    assert words == "a, 90 %: R 1.01; R rerun 0.81; FT <x> 0.21. b, 90 %: R 1.01; R rerun 0.81; FT <x> 0.61."


def test_one_seed_has_a_mean_and_no_interval_and_equal_numbers_have_an_axis() -> None:
    body = results()
    body["cells"] = [cell for cell in body["cells"] if cell["labels"]["seed"] == "0" and cell["method"] == "R"]
    root = ET.fromstring(render_figure(body, "IoU"))
    assert len(places(root, "mean")) == len(places(root, "seeds")) == 2
    assert not [path for path in root.iter(f"{SVG}path") if kind(path) == "interval"]
    assert axis(root)(places(root, "mean")[0][0]) == pytest.approx(1.0, abs=1e-3)


def test_it_is_readable_on_light_and_dark_pages_and_has_unique_ids() -> None:
    one, two = render_figure(results(), "IoU"), render_figure(results(), "IoU", only={"task": ["a"]}, comment="a")
    roots = [ET.fromstring(text) for text in (one, two)]
    assert render_figure(results(), "IoU") == one
    ids = [[e.get("id") for e in root.iter() if "id" in e.attrib] for root in roots]
    assert not set(ids[0]) & set(ids[1])

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for element in roots[0].iter():
        for part in ("fill", "stroke"):
            paint = element.get(part, "none")
            if paint != "none" and "stroke-opacity" not in element.attrib:  # the grid is meant to be faint
                for page in (1.0, luminance("#0d1117")):
                    low, high = sorted((luminance(paint), page))
                    assert (high + 0.05) / (low + 0.05) >= (4.0 if element.tag.endswith("text") else 3.0)


def test_a_selection_leaves_the_others_out() -> None:
    some = ET.fromstring(render_figure(results(), "IoU", only={"method": ["FT <x>"], "task": ["a"]}))
    assert len(places(some, "mean")) == 1
    assert len(places(some, "seeds")) == 2
    assert "R rerun" not in [t.text for t in some.iter(f"{SVG}text")]


@pytest.mark.parametrize(
    ("score", "only", "message"),
    [
        ("IuO", {}, "did you mean 'IoU'"),
        ("IoU", {"metod": ["R"]}, "no axis 'metod'"),
        ("IoU", {"method": ["RR"]}, "has no label 'RR'"),
    ],
)
def test_wrong_names(score: str, only: dict[str, list[str]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        render_figure(results(), score, only=only)
