"""The disparity average against rows of table 1 of [Jia2023] (value, gap and average as printed there)."""

from __future__ import annotations

import pytest

from expunge.evaluation.facts import score_facts
from expunge.evaluation.registry.definition import Missing
from expunge.evaluation.registry.inputs import ScoreInputs
from expunge.evaluation.score import Score, Scores
from expunge.evaluation.scores.disparity import NAME, TERMS, disparity_average, measure_disparity

RETRAIN = dict(zip(TERMS, (100.00, 100.00, 100.00, 94.83), strict=True))
RETRAIN_RANDOM = dict(zip(TERMS, (5.41, 13.12, 100.00, 94.42), strict=True))


@pytest.mark.parametrize(
    ("values", "reference", "printed"),
    [
        ((22.53, 75.00, 99.87, 94.31), RETRAIN, 25.78),  # FT, class-wise, dense
        ((93.08, 94.03, 92.60, 86.64), RETRAIN, 7.12),  # GA
        ((87.82, 95.96, 97.98, 91.42), RETRAIN, 5.41),  # IU
        ((6.83, 14.97, 96.61, 90.13), RETRAIN_RANDOM, 2.74),  # FT, random, dense
        ((7.54, 10.04, 93.31, 89.28), RETRAIN_RANDOM, 4.26),  # GA
    ],
)
def test_rows_of_the_paper(values, reference, printed):
    assert disparity_average(dict(zip(TERMS, values, strict=True)), reference) == pytest.approx(printed, abs=0.006)


def test_the_gaps_of_the_paper_average_to_25_78():
    zero = dict.fromkeys(TERMS, 0.0)
    gaps = dict(zip(TERMS, (77.47, 25.0, 0.13, 0.52), strict=True))
    assert disparity_average(gaps, zero) == pytest.approx(25.78)


def measure(reference=RETRAIN, without=()):
    values = zip(TERMS, (22.53, 75.00, 99.87, 94.31), strict=True)
    inputs = ScoreInputs(reference=Scores(()))
    inputs.measured.update(
        (n, Score(n, v, "%", "reference", "d.", reference=reference.get(n))) for n, v in values if n not in without
    )
    return measure_disparity(inputs)


def test_score_has_unit_and_direction():
    found = measure()
    assert found is not None
    assert found.value == pytest.approx(25.78)
    assert (score_facts(NAME).unit, score_facts(NAME).direction) == ("points", "lower")
    assert score_facts(NAME).averages == TERMS == ("UA", "MIA-Efficacy", "RA", "TA")


def test_nothing_is_averaged_over_fewer_than_four():
    missing = measure(without=("TA",))
    assert isinstance(missing, Missing)
    assert missing.reason == "needs TA"
    missing = measure(reference={k: v for k, v in RETRAIN.items() if k != "UA"})
    assert isinstance(missing, Missing)
    assert missing.reason == "needs UA"


def test_the_reference_itself_has_none():
    assert disparity_average(RETRAIN, RETRAIN) == 0.0
