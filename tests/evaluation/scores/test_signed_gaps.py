"""Summaries over seeds where the model lies below its reference in some scores and above it in others."""

from __future__ import annotations

import numpy as np
import pytest

from expunge.evaluation import Score, Scores, disparity_of_means, summarise

TERMS = ("UA", "MIA-Efficacy", "RA", "TA")


def scores_of_seed(values: list[float], reference: list[float]) -> Scores:
    rows = zip(TERMS, values, reference, strict=True)
    return Scores(tuple(Score(name, value, "%", "reference", "", reference=other) for name, value, other in rows))


def test_gaps_of_opposite_sign_do_not_cancel_between_scores() -> None:
    """Within one score they cancel between seeds; between the four scores each counts with its size."""
    found = summarise(
        [scores_of_seed([40, 60, 90, 83], [50, 50, 95, 80]), scores_of_seed([42, 64, 94, 77], [50, 50, 95, 80])]
    )
    assert [found[name].gap.mean for name in TERMS] == [-9, 12, -3, 0]
    assert disparity_of_means(found) == pytest.approx(np.mean([9, 12, 3, 0]))


def test_a_gap_below_the_reference_is_printed_with_its_sign() -> None:
    found = summarise([scores_of_seed([40, 60, 90, 83], [50, 50, 95, 80])])
    assert [found[name].row()["gap"][:1] for name in TERMS] == ["-", "+", "-", "+"]


def test_a_score_that_one_seed_lacks_does_not_hide_those_after_it() -> None:
    first, second = scores_of_seed([40, 60, 90, 83], [50, 50, 95, 80]), scores_of_seed([42, 60, 90, 83], [50] * 4)
    for lacking in range(4):
        fewer = Scores(tuple(score for place, score in enumerate(second) if place != lacking))
        for seeds in ([first, fewer], [fewer, first]):
            assert list(summarise(seeds)) == [name for place, name in enumerate(TERMS) if place != lacking]
            assert disparity_of_means(summarise(seeds)) is None
