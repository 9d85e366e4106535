"""The disparity average: the mean absolute gap to the retrained model over four scores."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from expunge.evaluation.score import Score, Scores

#: The four scores whose absolute gaps are averaged.
TERMS = ("UA", "MIA-Efficacy", "RA", "TA")
NAME = "Disparity average"
CITATION = "[Jia2023], table 1 (column Disparity Ave.)"


def disparity_average(values: Mapping[str, float], reference: Mapping[str, float]) -> float:
    """mean over {UA, MIA-Efficacy, RA, TA} of |value - reference|, in percentage points [Jia2023], table 1.

    Args:
        values: the four scores of the model by name, in %.
        reference: the four scores of the retrained model by name, in %.

    Raises:
        KeyError: one of the four scores is missing.

    Examples:
        >>> from expunge.evaluation import disparity_average
        >>> values = {"UA": 6.0, "MIA-Efficacy": 15.0, "RA": 97.0, "TA": 90.0}
        >>> reference = {"UA": 5.0, "MIA-Efficacy": 13.0, "RA": 100.0, "TA": 94.0}
        >>> disparity_average(values, reference)
        2.5
    """
    return float(np.mean([abs(values[term] - reference[term]) for term in TERMS]))


def score_disparity(scores: Scores) -> Score | None:
    """Score the disparity average; None if one of the four scores or its reference value is missing."""
    present = [scores[term] for term in TERMS if term in scores]
    values = {score.name: score.value for score in present}
    reference = {score.name: score.reference for score in present if score.reference is not None}
    if len(reference) < len(TERMS):
        return None
    return Score(
        NAME,
        disparity_average(values, reference),
        "points",
        "lower",
        f"Mean absolute gap to the retrained model over {', '.join(TERMS)}.",
        CITATION,
    )
