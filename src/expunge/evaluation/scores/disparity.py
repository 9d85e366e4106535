"""The disparity average: the mean absolute gap to the retrained model over four scores."""

from __future__ import annotations

from collections.abc import Mapping

from expunge.evaluation.facts import score_facts
from expunge.evaluation.registry.definition import Measurement, Missing, register_score
from expunge.evaluation.registry.inputs import ScoreInputs
from expunge.evaluation.seeds import average_gap


@register_score(
    "Disparity average", unit="points", direction="lower", needs=("predictions", "reference"),
    averages=("UA", "MIA-Efficacy", "RA", "TA"), citation="[Jia2023], table 1 (column Disparity Ave.)",
    position=190, column=5, heading="Disparity", decimals=2, compared=False, table="main",
    aliases=("Disparity", "Disparity Ave."),
    legend="Disparity: mean±spread of the seed-paired disparity average (average of the four gaps of means, as in "
    "[Jia2023]).",
)  # fmt: skip
def measure_disparity(inputs: ScoreInputs) -> Measurement | Missing:
    """Mean of the absolute gaps of UA, MIA-Efficacy, RA and TA."""
    present = [inputs.measured[term] for term in TERMS if term in inputs.measured]
    values = {score.name: score.value for score in present}
    reference = {score.name: score.reference for score in present if score.reference is not None}
    if len(reference) < len(TERMS):
        absent = [term for term in TERMS if term not in reference]
        return Missing(reason=f"needs {', '.join(absent)}")
    text = f"Mean absolute gap to the retrained model over {', '.join(TERMS)}."
    return Measurement(disparity_average(values, reference), text)


NAME = "Disparity average"
#: The four scores whose absolute gaps are averaged.
TERMS = score_facts(NAME).averages


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
    return average_gap(values, reference, TERMS)
