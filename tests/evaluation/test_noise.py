"""The noise floor: against brute force, and for normal values against its closed form."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from expunge.evaluation import noise_floors
from expunge.evaluation.scores.disparity import TERMS

NAME = "Disparity average"


def runs(values: np.ndarray) -> list[dict[str, float]]:
    return [dict(zip(TERMS, map(float, row), strict=True)) for row in values]


def test_the_floor_is_the_mean_difference_over_all_pairs() -> None:
    values = np.array([[10.0, 20, 90, 80], [13.0, 20, 91, 84], [11.0, 26, 90, 80]])
    found = noise_floors([{**run, "AUC": run["UA"] / 100} for run in runs(values)])
    assert [found[name] for name in TERMS] == pytest.approx([2.0, 4.0, 2 / 3, 8 / 3])  # |a - b|: 3, 1, 2; 0, 6, 6; ...
    assert found["AUC"] == pytest.approx(0.02)
    assert found[NAME] == pytest.approx(((3 + 0 + 1 + 4) / 4 + (1 + 6 + 0 + 0) / 4 + (2 + 6 + 1 + 4) / 4) / 3)


def test_of_normal_values_it_is_two_over_root_pi_standard_deviations() -> None:
    values = np.random.default_rng(0).normal(50, 3, (600, 4))
    assert noise_floors(runs(values))["RA"] == pytest.approx(3 * 2 / np.sqrt(np.pi), rel=0.03)


def test_a_model_counts_once_however_many_seeds_share_it() -> None:
    values = np.array([[0.0, 0, 0, 0], [0.0, 0, 0, 0], [0.0, 0, 0, 0], [6.0, 0, 0, 0]])
    assert noise_floors(runs(values), ["a", "a", "a", "b"])["UA"] == 6
    assert noise_floors(runs(values), ["a", "a", "a", "b"])[NAME] == 1.5
    assert noise_floors(runs(values), [None] * 4)["UA"] == 3
    assert noise_floors(runs(values)) == noise_floors(runs(values), [None] * 4)
    assert noise_floors(runs(values), ["a"] * 4) == {}


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_references_have_no_floor(count: int) -> None:
    assert noise_floors(runs(np.zeros((count, 4)))) == {}


def test_an_incomplete_reference_is_left_out_of_the_disparity_only() -> None:
    full = runs(np.array([[0.0, 0, 0, 0], [4.0, 4, 4, 4], [9.0, 9, 9, 9]]))
    del full[2]["MIA-Efficacy"]
    found = noise_floors(full)
    assert found["MIA-Efficacy"] == 4
    assert found["UA"] == 6
    assert found[NAME] == 4
    del full[1]["TA"]
    assert NAME not in noise_floors(full)
    assert noise_floors(full)["TA"] == 9


def test_a_disparity_average_among_the_scores_is_not_the_floor() -> None:
    """It is 0 in every run, because each run is its own reference."""
    values = [{**run, NAME: 0.0} for run in runs(np.array([[0.0, 0, 0, 0], [4.0, 4, 4, 4]]))]
    assert noise_floors(values)[NAME] == 4


def test_it_does_not_import_torch() -> None:
    code = "import sys, expunge.evaluation.seeds as n; n.noise_floors([]); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
