"""Claims compared with hand calculation and scipy."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from expunge.experiments.config.plan_file import Claim
from expunge.experiments.results.claims import check_claim, mean, spread, t_interval

AXES = [
    {"name": "sparsity", "labels": ["dense", "sparse"]},
    {"name": "model", "labels": ["a", "b"]},
    {"name": "seed", "labels": ["0", "1", "2"]},
]


def cells(dense: list[float | None], sparse: list[float | None]) -> list[dict[str, Any]]:
    """Cells of models a (three seeds) and b (three seeds), in the order of the lists."""
    found = []
    for name, values in (("dense", dense), ("sparse", sparse)):
        for (model, seed), value in zip(itertools.product("ab", "012"), values, strict=True):
            labels = {"sparsity": name, "model": model, "seed": seed}
            scores = {} if value is None else {"UA": value}
            found.append(
                {"labels": labels, "scores": scores, "reference": 0, "is_reference": False, "state": "finished"}
            )
    return found


def claim(**changes: Any) -> Claim:
    body = {
        "name": "c", "statement": "s", "score": "UA", "expect": "lower",
        "compare": ({"sparsity": "sparse"}, {"sparsity": "dense"}),
    }  # fmt: skip
    return Claim(**{**body, **changes})


def test_pairs_agree_on_all_other_axes() -> None:
    dense, sparse = [5.0, 6, 7, 50, 60, 70], [4.0, 4, 5, 49, 58, 69]
    (check,) = check_claim(claim(), cells(dense, sparse), AXES)["checks"]
    gains = np.subtract(dense, sparse)
    expected = scipy.stats.t.interval(0.95, 5, loc=gains.mean(), scale=scipy.stats.sem(gains))
    assert check["pairs"] == 6
    assert check["gain"] == pytest.approx(gains.mean())
    assert check["spread"] == pytest.approx(gains.std(ddof=1))
    assert check["interval"] == pytest.approx(list(expected))
    assert check["verdict"] == "holds"


@pytest.mark.parametrize(
    ("sparse", "changes", "verdict"),
    [
        ([4.0, 5, 6.1], {}, "holds"),
        ([4.0, 5, 6.1], {"by": 2.0}, "does not hold"),
        ([4.0, 5, 6.1], {"expect": "higher"}, "does not hold"),
        ([5.0, 6, 7], {}, "within noise"),
        ([1.0, 9, 6], {}, "within noise"),
        ([4.0, None, None], {}, "not tested"),
        ([1.0, 1, 1], {"factor": 0.5}, "holds"),  # 2.5, 3 and 3.5 less 1
        ([2.0, 2, 2], {"factor": 0.2}, "does not hold"),
        ([2.0, 2, 2], {"factor": 0.2, "expect": "higher"}, "holds"),
    ],
)
def test_verdicts(sparse: list[float | None], changes: dict[str, Any], verdict: str) -> None:
    given_cells = cells([5.0, 6, 7, 0, 0, 0], [*sparse, 0, 0, 0])
    checks = check_claim(claim(each=("model",), **changes), given_cells, AXES)["checks"]
    assert [check["at"] for check in checks] == [{"model": "a"}, {"model": "b"}]
    assert checks[0]["verdict"] == verdict


def test_gap_scores_are_distances_to_the_reference() -> None:
    given_cells = cells([5.0, 6, 7, 0, 0, 0], [4.0, 9, 9, 0, 0, 0])
    (check,) = check_claim(claim(score="gap:UA", where={"model": "a"}), given_cells, AXES)["checks"]
    assert check["first"] == pytest.approx((1 + 4 + 4) / 3)
    assert check["second"] == pytest.approx((0 + 1 + 2) / 3)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=20))
def test_mean_spread_and_interval(values: list[float]) -> None:
    assert mean(values) == pytest.approx(np.mean(values), abs=1e-9)
    assert spread(values) == pytest.approx(np.std(values, ddof=1), abs=1e-9)
    low, high = t_interval(values)
    half = scipy.stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    assert high - low == pytest.approx(2 * half, abs=1e-7)


@pytest.mark.parametrize("where", [{"model": "c"}, {}])
def test_a_claim_about_cells_that_the_plan_does_not_have_has_no_checks(where: dict[str, str]) -> None:
    """Cells without the score are another case: there is a check, of no pairs."""
    given_cells = cells([5.0, 6, 7, 0, 0, 0], [None] * 6)
    checks = check_claim(claim(where=where), given_cells, AXES)["checks"]
    assert [check["pairs"] for check in checks] == ([] if where else [0])
