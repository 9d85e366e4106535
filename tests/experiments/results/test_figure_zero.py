"""A score of 0 is drawn at 0: the axis covers it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from expunge.experiments import render_figure


def results(values: tuple[float, float]) -> dict[str, Any]:
    cells = [
        {
            "labels": {"method": method}, "method": method, "sparsity": 0.0, "scores": {"UA": value}, "reference": 0,
            "is_reference": method == "R", "state": "finished",
        }
        for method, value in zip(("R", "FT"), values, strict=True)
    ]  # fmt: skip
    axes = [{"name": "method", "role": "method", "labels": ["R", "FT"]}]
    return {"plan": {"name": "toy"}, "axes": axes, "cells": cells, "scores": {"UA": {"unit": "%"}}}


@pytest.mark.parametrize("values", [(0.0, 5.0), (5.0, 0.0), (0.0, 0.0)])
def test_the_axis_covers_zero(values: tuple[float, float]) -> None:
    root = ET.fromstring(render_figure(results(values), score="UA"))
    texts = [t.text or "" for t in root.iter("{http://www.w3.org/2000/svg}text")]
    ticks = [float(text) for text in texts if re.fullmatch(r"-?\d+(\.\d+)?", text)]
    assert 0 in ticks
    assert min(ticks) == 0
    assert max(ticks) >= max(values)


@pytest.mark.parametrize("value", [0.0, 2.5])
def test_the_line_of_the_rerun_is_at_its_value_also_at_zero(value: float) -> None:
    """It goes through the dot of the rerun's mean."""
    body = {**results((value, 5.0)), "rerun": "R"}
    root = ET.fromstring(render_figure(body, score="UA"))
    (line,) = [path for path in root.iter("{http://www.w3.org/2000/svg}path") if path.get("class") == "rerun"]
    (dot, _) = [group for group in root.iter() if group.get("class") == "mean"]
    (use,) = dot.iter("{http://www.w3.org/2000/svg}use")
    ends = [float(x) for x in re.findall(r"[ML](-?[\d.]+) ", line.attrib["d"])]
    assert ends == pytest.approx([float(use.attrib["x"])] * 2, abs=1e-3)
