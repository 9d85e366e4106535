"""Tables of rows that are incomplete, or of which one seed only is over the limit of passes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from expunge.core.errors import FileError
from expunge.experiments import read_results, render_table
from expunge.experiments.results.summary import column_headings, make_sections

PLANS = Path(__file__).parents[3] / "plans"
TERMS = ("UA", "MIA-Efficacy", "RA", "TA")


def results(references: list[dict[str, float]], others: list[dict[str, float]], **cell: list[Any]) -> dict[str, Any]:
    """A plan of Retrain and FT, one cell a seed; `cell` gives further keys of the cells of FT."""
    cells = []
    for seed, (reference, other) in enumerate(zip(references, others, strict=True)):
        for method, scores in (("Retrain", reference), ("FT", other)):
            further = {key: values[seed] for key, values in cell.items()} if method == "FT" else {}
            cells.append(
                {
                    "labels": {"method": method, "seed": str(seed)}, "method": method, "sparsity": 0.0,
                    "state": "finished", "scores": scores, "reference": 2 * seed, "is_reference": method == "Retrain",
                    **further,
                }
            )  # fmt: skip
    axes = [
        {"name": "method", "role": "method", "labels": ["Retrain", "FT"]},
        {"name": "seed", "role": "replicate", "labels": [str(seed) for seed in range(len(references))]},
    ]
    return {"axes": axes, "cells": cells, "scores": {}}


def four(*values: float) -> dict[str, float]:
    return dict(zip(TERMS, values, strict=True))


@pytest.mark.parametrize(("limits", "marked"), [((False, False), False), ((False, True), True), ((True, False), True)])
def test_one_seed_over_the_limit_marks_the_row(limits: tuple[bool, bool], marked: bool) -> None:
    scores = [{**four(1, 2, 3, 4), "Passes": passes} for passes in (1.0, 9.0)]
    (section,) = make_sections(results([four(1, 2, 3, 4)] * 2, scores, over_limit=list(limits)))
    row = section.rows["FT"]["dense"]
    assert row["Passes"].over_limit is marked
    assert row["Passes"].text().endswith(" !") is marked
    assert not any(row[name].over_limit for name in TERMS)


def test_a_disparity_average_of_three_gaps_is_none() -> None:
    """Three of its four scores have a gap: the average is unknown, not that of the three."""
    reference, other = four(10, 20, 90, 80), four(12, 22, 92, 82)
    del other["TA"]
    (section,) = make_sections(results([reference] * 2, [other] * 2))
    row = section.rows["FT"]["dense"]
    assert [row[name].gap for name in TERMS] == [2, 2, 2, None]
    assert row["Disparity average"].gap is None
    assert row["Disparity average"].text() == "-"


def test_the_floor_of_the_disparity_average_needs_two_complete_references() -> None:
    references = [four(0, 0, 0, 0), four(4, 4, 4, 4), four(9, 9, 9, 9)]
    del references[2]["MIA-Efficacy"]
    others = [four(1, 1, 1, 1)] * 3
    (section,) = make_sections(results(references, others))
    assert section.floor["dense"]["Disparity average"] == 4  # of the two complete ones; not 6, the mean of all pairs
    assert section.floor["dense"]["UA"] == 6
    del references[1]["TA"]
    (section,) = make_sections(results(references, others))
    assert "Disparity average" not in section.floor["dense"]
    assert section.floor["dense"]["TA"] == 9


def test_headings_have_the_unit_of_the_score() -> None:
    scores = {"my score": {"unit": "bits"}, "another": {"unit": ""}, "third": {}}
    found = column_headings({"columns": list(scores), "scores": scores})
    assert found == {"my score": "my score bits", "another": "another", "third": "third"}


def test_a_claim_with_an_unknown_expectation_is_refused(tmp_path: Path) -> None:
    """Whatever is not `lower` would be tested as `higher`."""
    body = json.loads((PLANS / "error-bound-unprune.results.json").read_text())
    path = tmp_path / "edited.results.json"
    for expect, refused in (("lower", False), ("sideways", True)):
        body["claims"][0]["expect"] = expect
        path.write_text(json.dumps(body))
        if refused:
            with pytest.raises(FileError, match="expect"):
                read_results(path)
        else:
            assert read_results(path)["claims"][0]["expect"] == "lower"


@pytest.mark.parametrize("style", ["text", "markdown"])
def test_normalised_overlaps_have_a_row_each(style: str) -> None:
    def estimate(value: float) -> dict[str, Any]:
        return {"value": value, "interval": {"low": value - 0.01, "high": value + 0.02, "level": 0.95}, "runs": 3}

    body = results([four(1, 2, 3, 4)] * 2, [four(2, 3, 4, 5)] * 2)
    body |= {
        "plan": {"name": "p", "description": "", "file": "p.yaml", "hash": "0" * 64}, "reference": "Retrain",
        "passes_limit": 0.1, "claims": [], "made": {"stages": 0},
        "overlaps": [
            {
                "at": {"method": "FT"}, "numerator": estimate(0.125), "denominator": estimate(0.25), "ratio": ratio,
                "ratio_interval": None if ratio is None else {"low": 0.375, "high": 0.75, "level": 0.95},
            }
            for ratio in (0.5, None)
        ],
    }  # fmt: skip
    rows = [line for line in render_table(body, style).splitlines() if "0.125 [0.115, 0.145]" in line]
    assert len(rows) == 2
    assert all("FT" in row and "0.250 [0.240, 0.270]" in row for row in rows)
    assert "0.500 [0.375, 0.750]" in rows[0]
    assert rows[1].rstrip(" |").endswith("-")


def body_of(cells: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        **cells, "plan": {"name": "p", "description": "", "file": "p.yaml", "hash": "0" * 64}, "reference": "Retrain",
        "passes_limit": 0.1, "claims": [], "made": {"stages": 0}, **more,
    }  # fmt: skip


def test_the_table_says_how_many_cells_have_not_been_run() -> None:
    body = body_of(results([four(1, 2, 3, 4)] * 3, [four(2, 3, 4, 5)] * 3))
    assert "have not been run" not in render_table(body)
    for place in (1, 5):
        body["cells"][place].update(state="missing", scores={})
    for style in ("text", "markdown"):
        assert "2 of 6 cells have not been run." in render_table(body, style)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({}, None),
        ({"pairs": 0, "first": None, "second": None, "interval": None, "gain": None, "spread": None}, None),
        ({"interval": None, "gain": None, "spread": None}, None),
        ({"first": None}, "first"),
        ({"second": None}, "second"),
        ({"gain": None}, "gain"),
        ({"spread": None}, "spread"),
    ],
)
def test_a_tested_claim_without_its_numbers_is_refused(change: dict[str, Any], key: str | None, tmp_path: Path) -> None:
    body = json.loads((PLANS / "error-bound-unprune.results.json").read_text())
    check = body["claims"][0]["checks"][0]
    assert check["pairs"] >= 2
    check.update(change)
    path = tmp_path / "edited.results.json"
    path.write_text(json.dumps(body))
    if key is None:
        assert render_table(read_results(path))
    else:
        with pytest.raises(FileError, match=rf"claims\.0\.checks\.0\.{key}: is None, not a number"):
            read_results(path)
