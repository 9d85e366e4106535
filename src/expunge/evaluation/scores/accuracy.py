"""Accuracies of [Jia2023]: UA, RA, TA, and the error on the retain set (100-RA), with Wilson intervals."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from expunge.core.errors import DataError
from expunge.core.show import plural
from expunge.evaluation.predictions import Floats, Predictions
from expunge.evaluation.registry.definition import Measurement, Missing, register_score, without_retained, without_test
from expunge.evaluation.registry.inputs import ScoreInputs
from expunge.evaluation.score import Interval


def accuracy(predictions: Predictions) -> float:
    """100 * mean(argmax logits = label), in %.

    Args:
        predictions: logits `N x K` and labels `N`.

    Raises:
        DataError: there are no records.

    Examples:
        >>> import numpy as np
        >>> from expunge.evaluation import Predictions, accuracy
        >>> logits = np.array([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0], [0.0, 2.0]])
        >>> accuracy(Predictions(logits, np.array([0, 1, 1, 1]), np.array(["a", "b", "c", "d"])))
        75.0
    """
    if len(predictions) == 0:
        raise DataError("there are no records to compute an accuracy on", hint="this part of the split is empty")
    return 100.0 * float(predictions.correct.mean())


def wilson_interval(successes: int, total: int, level: float = 0.95) -> Interval:
    """Wilson's interval of a proportion, in % [Wilson1927]_.

    100 (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), with p = successes / total and n = total.

    .. [Wilson1927] Wilson: Probable inference, the law of succession, and statistical inference, JASA 22.

    Args:
        successes: number of successes.
        total: number of trials, at least 1.
        level: confidence level, in (0, 1).
    """
    z = NormalDist().inv_cdf(0.5 + level / 2)
    p = successes / total
    centre = p + z * z / (2 * total)
    half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    scale = 100.0 / (1 + z * z / total)
    low = 0.0 if successes == 0 else scale * (centre - half)
    high = 100.0 if successes == total else scale * (centre + half)
    return Interval(low, high, level)


def class_accuracy(predictions: Predictions, classes: int) -> tuple[Floats, np.ndarray]:
    """Accuracy of each class in % (`K` numbers, NaN for a class without records), and `K` record counts."""
    counts = np.bincount(predictions.labels, minlength=classes)
    hits = np.bincount(predictions.labels[predictions.correct], minlength=classes)
    with np.errstate(invalid="ignore", divide="ignore"):
        return 100.0 * hits / counts, counts


def _measure(predictions: Predictions, text: str, *, error: bool = False) -> Measurement:
    percent = accuracy(predictions)
    hits, total = int(predictions.correct.sum()), len(predictions)
    return Measurement(
        100.0 - percent if error else percent,
        f"{text} ({plural(total, 'record')}, no augmentation, evaluation mode).",
        wilson_interval(total - hits if error else hits, total),
    )


@register_score(
    "UA", unit="%", direction="reference", needs=("predictions",), citation="[Jia2023], section 5",
    position=100, column=1, heading="UA %", decimals=2, gap=True, table="main",
)  # fmt: skip
def measure_ua(inputs: ScoreInputs) -> Measurement:
    """100 - accuracy on D_f; of a correction, on the old labels and features of the corrected records."""
    where = "the forget set D_f" if inputs.parts.corrected is None else "the old values of the corrected records"
    return _measure(inputs.parts.forget, f"100 - accuracy on {where}", error=True)


@register_score(
    "Corrected", unit="%", direction="reference", needs=("predictions",),
    citation="this project; the counterpart of UA for corrections (Warnecke et al. 2023 correct labels and features)",
    position=105, heading="Corrected %", decimals=2, gap=True, table="main",
)  # fmt: skip
def measure_corrected(inputs: ScoreInputs) -> Measurement | None:
    """Accuracy on the records of a correction, with their new labels and features. Other requests do not have it."""
    if inputs.parts.corrected is None:
        return None
    return _measure(inputs.parts.corrected, "accuracy on the new values of the corrected records")


@register_score(
    "100-RA", unit="%", direction="reference", needs=("predictions",),
    citation="this project; reported with UA, which also rises with general damage", position=110,
)  # fmt: skip
def measure_retain_error(inputs: ScoreInputs) -> Measurement | Missing:
    """Error on D_r. Not in the paper; UA also rises with general damage, and this score shows it."""
    if not len(inputs.parts.retain):
        return without_retained("100-RA")
    text = "error on the retain set D_r: loss of accuracy that is not forgetting"
    return _measure(inputs.parts.retain, text, error=True)


@register_score(
    "RA", unit="%", direction="reference", needs=("predictions",), citation="[Jia2023], section 5",
    position=120, column=3, heading="RA %", decimals=2, gap=True, table="main",
)  # fmt: skip
def measure_ra(inputs: ScoreInputs) -> Measurement | Missing:
    """Accuracy on D_r."""
    if not len(inputs.parts.retain):
        return without_retained("RA")
    return _measure(inputs.parts.retain, "accuracy on the retain set D_r")


@register_score(
    "TA", unit="%", direction="reference", needs=("predictions",), citation="[Jia2023], section 5",
    position=130, column=4, heading="TA %", decimals=2, gap=True, table="main",
)  # fmt: skip
def measure_ta(inputs: ScoreInputs) -> Measurement | Missing:
    """Accuracy on the test records; if a whole class is forgotten, without that class."""
    parts = inputs.parts
    if not parts.has_test:
        return without_test("TA")
    test_records = "the test records"
    if parts.forgotten_class is not None:
        test_records += f" outside the forgotten class {parts.class_names[parts.forgotten_class]!r}"
    return _measure(parts.legacy_test, f"accuracy on {test_records}")
