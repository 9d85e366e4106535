"""The disparity average: how far a model is from the retrained one, in one number."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from expunge.evaluation.score import Score, Scores

#: The four scores whose absolute gaps are averaged.
TERMS = ("UA", "MIA-Efficacy", "RA", "TA")
NAME = "Disparity average"
SOURCE = "Jia et al., NeurIPS 2023, table 1 (column Disparity Ave.)"


def disparity_average(values: Mapping[str, float], reference: Mapping[str, float]) -> float:
    """mean over {UA, MIA-Efficacy, RA, TA} of |value - reference|, in percentage points; 0 is the reference itself."""
    return float(np.mean([abs(values[term] - reference[term]) for term in TERMS]))


def disparity_score(scores: Scores) -> Score | None:
    """The disparity average of scores that carry reference values; None where a term or its reference is missing."""
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
        SOURCE,
    )
