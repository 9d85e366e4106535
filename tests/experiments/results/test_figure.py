"""Figures of plans: the marks lie where the numbers say, and wrong names are refused."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import pytest

from expunge.core.errors import ConfigError
from expunge.experiments import render_figure

SVG = "{http://www.w3.org/2000/svg}"


def results() -> dict[str, Any]:
    """Two methods and a repeat of the reference, two seeds, two cases."""
    cells = []
    for case in ("a", "b"):
        for seed in ("0", "1"):
            first = len(cells)
            for method, value in (("R", 1.0), ("R again", 0.8), ("FT <x>", 0.2 if case == "a" else 0.6)):
                labels = {"seed": seed, "task": case, "method": method}
                scores = {"IoU": value + (0.02 if seed == "1" else 0.0)}
                cells.append(
                    {"labels": labels, "method": method, "sparsity": 0.9, "scores": scores, "reference": first,
                     "is_reference": method == "R", "state": "finished"}
                )  # fmt: skip
    axes = [
        {"name": "seed", "role": "replicate", "labels": ["0", "1"]},
        {"name": "task", "role": "case", "labels": ["a", "b"]},
        {"name": "method", "role": "method", "labels": ["R", "R again", "FT <x>"]},
    ]
    return {
        "plan": {"name": "toy"}, "axes": axes, "cells": cells, "again": "R again", "columns": ["IoU"],
        "scores": {"IoU": {"unit": ""}},
    }  # fmt: skip


def test_marks_lie_where_the_numbers_say() -> None:
    root = ET.fromstring(render_figure(results(), "IoU", source="toy"))
    circles = [dict(c.attrib) for c in root.iter(f"{SVG}circle")]
    large = [float(c["cx"]) for c in circles if c["r"] == "3.4"]
    assert len(large) == 6
    assert len(circles) == 6 + 12
    # panel a: R 1.01, again 0.81, FT 0.21: distances are in proportion
    assert (large[0] - large[1]) / (large[0] - large[2]) == pytest.approx(0.2 / 0.8, abs=0.01)
    dashed = [p.attrib["d"] for p in root.iter(f"{SVG}path") if "stroke-dasharray" in p.attrib]
    assert float(dashed[0][1:].split(" ")[0]) == pytest.approx(large[1], abs=0.11)
    texts = [t.text for t in root.iter(f"{SVG}text")]
    assert "FT <x>" in texts
    assert {"a", "b"} <= set(texts)


def test_a_selection_leaves_the_others_out() -> None:
    some = ET.fromstring(render_figure(results(), "IoU", only={"method": ["FT <x>"], "task": ["a"]}))
    assert sum(c.attrib["r"] == "3.4" for c in some.iter(f"{SVG}circle")) == 1


@pytest.mark.parametrize(
    ("score", "only", "message"),
    [
        ("IuO", {}, "did you mean 'IoU'"),
        ("IoU", {"metod": ["R"]}, "no axis 'metod'"),
        ("IoU", {"method": ["RR"]}, "has no 'RR'"),
    ],
)
def test_wrong_names(score: str, only: dict[str, list[str]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        render_figure(results(), score, only=only)
