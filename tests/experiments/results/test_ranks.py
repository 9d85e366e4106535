"""Ranks: against scipy's, with failures last, the noise of retraining, several result files, and their figure."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ET
from typing import Any

import numpy as np
import pytest
from scipy.stats import rankdata

from expunge.core.errors import ConfigError
from expunge.experiments import rank_methods, render_rank_table, render_ranks, render_table

METHODS = ("FT", "GA", "RL", "IU")
SCORE = "Disparity average"


def make(name: str, values: dict[tuple[str, str, int], float | None], *, rerun: float | None = 2.5) -> dict[str, Any]:
    """Results: (method, sparsity, seed) to the score, None for a failure."""
    cells: list[dict[str, Any]] = []
    axes = [
        {"name": "method", "role": "method", "labels": ["Retrain", "again", *METHODS]},
        {"name": "sparsity", "role": "sparsity", "labels": ["dense", "95 %"]},
        {"name": "seed", "role": "replicate", "labels": ["0", "1", "2"]},
    ]
    for sparsity, seed in itertools.product(("dense", "95 %"), (0, 1, 2)):
        reference = len(cells)
        rows: list[tuple[str, float | None]] = [("Retrain", None)]
        rows += [] if rerun is None else [("again", rerun)]
        rows += [(m, values[m, sparsity, seed]) for m in METHODS if (m, sparsity, seed) in values]
        for method, value in rows:
            state = "finished" if method == "Retrain" or value is not None else "failed"
            scores = {} if value is None else {SCORE: value}
            if method == "Retrain":
                scores = {"UA": 20.0 + seed, "RA": 99.0, "TA": 90.0, "MIA-Efficacy": 30.0}
            cells.append({
                "labels": {"method": method, "sparsity": sparsity, "seed": str(seed)}, "method": method,
                "sparsity": 0.0, "reference": reference, "is_reference": method == "Retrain", "state": state,
                "scores": scores, "cost": {"passes": 2.0}, "message": "it broke",
            })  # fmt: skip
    return {
        "plan": {"name": name, "description": ""}, "axes": axes, "cells": cells, "claims": [], "passes_limit": 0.1,
        "made": {"stages": 0}, "scores": {}, **({} if rerun is None else {"rerun": "again"}),
    }  # fmt: skip


def draw(seed: int) -> dict[tuple[str, str, int], float | None]:
    generator = np.random.default_rng(seed)
    keys = itertools.product(METHODS, ("dense", "95 %"), (0, 1, 2))
    return {key: float(generator.integers(0, 6)) for key in keys}  # with ties


@pytest.mark.parametrize("seed", range(5))
def test_mean_ranks_are_those_of_scipy(seed: int) -> None:
    values = [draw(seed), draw(seed + 100)]
    found = rank_methods([make("one", values[0]), make("two", values[1])])
    ranks: dict[str, list[float]] = {method: [] for method in METHODS}
    for table, sparsity, number in itertools.product(values, ("dense", "95 %"), (0, 1, 2)):
        own = rankdata([table[m, sparsity, number] for m in METHODS])
        for method, rank in zip(METHODS, own, strict=True):
            ranks[method].append(rank)
    assert {row.method: row.rank for row in found.rows} == pytest.approx({m: np.mean(r) for m, r in ranks.items()})
    assert [row.rank for row in found.rows] == sorted(row.rank for row in found.rows)
    assert (found.settings, found.seeds) == (4, 3)


def test_the_interval_contains_the_mean_and_narrows_when_all_cells_agree() -> None:
    for row in rank_methods([make("one", draw(1))]).rows:
        assert row.interval[0] <= row.rank <= row.interval[1]
        assert row.interval[0] < row.interval[1]
    same: dict[tuple[str, str, int], float | None] = {
        (m, s, n): float(place) for place, m in enumerate(METHODS) for s in ("dense", "95 %") for n in (0, 1, 2)
    }
    rows = rank_methods([make("one", same)]).rows
    assert [(row.method, row.rank, row.interval) for row in rows] == [
        (method, place + 1.0, (place + 1.0, place + 1.0)) for place, method in enumerate(METHODS)
    ]


def test_the_interval_is_that_of_resampled_settings() -> None:
    """In each setting all seeds agree, and the two settings do not: the mean of two draws from {1, 4}."""
    values: dict[tuple[str, str, int], float | None] = {}
    for number in (0, 1, 2):
        values |= {(m, "dense", number): float(i) for i, m in enumerate(METHODS)}
        values |= {(m, "95 %", number): -float(i) for i, m in enumerate(METHODS)}
    (row,) = [row for row in rank_methods([make("one", values)]).rows if row.method == "FT"]
    assert (row.rank, row.interval) == (2.5, (1.0, 4.0))


def test_failures_rank_last_and_are_counted() -> None:
    values = draw(2) | {("IU", "dense", 1): None}
    found = {row.method: row for row in rank_methods([make("one", values)]).rows}
    kept = {row.method: row for row in rank_methods([make("one", draw(2) | {("IU", "dense", 1): 1e9})]).rows}
    assert found["IU"].failed == 1
    assert found["IU"].rank == kept["IU"].rank
    assert "IU (1 failed)" in render_rank_table(rank_methods([make("one", values)]))


def test_the_noise_is_ranked_among_the_methods() -> None:
    values: dict[tuple[str, str, int], float | None] = {
        (m, s, n): float(place) for place, m in enumerate(METHODS) for s in ("dense", "95 %") for n in (0, 1, 2)
    }
    assert rank_methods([make("one", values, rerun=-1.0)]).noise == 1.0
    assert rank_methods([make("one", values, rerun=1.5)]).noise == 3.0
    assert rank_methods([make("one", values, rerun=1.0)]).noise == 2.5, "half of a tie"
    floor = rank_methods([make("one", values, rerun=None)]).noise
    assert floor is not None, "without a rerun, the noise floor over seeds"
    assert 1 <= floor <= 5


def test_methods_that_a_setting_lacks_are_left_out_and_named() -> None:
    first, second = make("one", draw(0)), make("two", {k: v for k, v in draw(1).items() if k[0] != "RL"})
    found = rank_methods([first, second])
    assert "RL" not in [row.method for row in found.rows]
    assert found.left_out == ("RL",)


def test_a_selection_keeps_the_noise() -> None:
    found = rank_methods([make("one", draw(0))], only={"method": ["FT", "GA"]})
    assert sorted(row.method for row in found.rows) == ["FT", "GA"]
    assert found.noise is not None
    with pytest.raises(ConfigError, match="no label"):
        rank_methods([make("one", draw(0))], only={"method": ["FTT"]})


def test_a_score_without_a_direction_or_values_is_refused() -> None:
    with pytest.raises(ConfigError, match="no direction"):
        rank_methods([make("one", draw(0))], "UA")
    with pytest.raises(ConfigError, match="no method"):
        rank_methods([make("one", {})])


def test_the_figure_has_a_row_for_every_method_its_interval_and_the_noise() -> None:
    svg = render_ranks([make("one", draw(0))], comment="one.results.json; ranks")
    root = ET.fromstring(svg)
    classes = [element.get("class", "").split()[:1] for element in root.iter()]
    assert classes.count(["mean"]) == classes.count(["interval"]) == len(METHODS)
    assert classes.count(["noise"]) == 1
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert {*METHODS, "passes", "score", "2 settings, 3 seeds"} <= set(texts)
    assert render_ranks([make("one", draw(0))], comment="one.results.json; ranks") == svg


def test_tables_mark_tuned_and_default_rows() -> None:
    results = make("one", draw(0))
    assert "Tuned" not in render_table(results), "older files do not say where options come from"
    for cell in results["cells"]:
        cell["options_from"] = {"GA": "tuned", "IU": "plan"}.get(cell["method"], "default")
    text = render_table(results)
    assert "GA, tuned" in text
    assert "Tuned (`expunge bench tune`, on a proxy request): GA, tuned." in text
    assert "Default options: again; FT; RL." in text or "Default options: " in text
    assert "Options set by the plan: IU." in text
