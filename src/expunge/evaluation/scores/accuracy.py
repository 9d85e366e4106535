"""Accuracies of [Jia2023] (suite `legacy`): UA, RA, TA, and the error on the retain set (100-RA)."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from expunge.core.errors import DataError
from expunge.evaluation.predictions import Floats, Parts, Predictions
from expunge.evaluation.score import Interval, Score

CITATION = "[Jia2023], section 5"


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


def score_accuracy(parts: Parts) -> tuple[Score, ...]:
    """Score UA, 100-RA, RA and TA with Wilson intervals; TA excludes a forgotten class.

    Args:
        parts: predictions of the model.

    Raises:
        DataError: the forget set, the retain set or the test set is empty.
    """
    test = parts.legacy_test
    test_records = "the test records"
    if parts.forgotten_class is not None:
        test_records += f" outside the forgotten class {parts.class_names[parts.forgotten_class]!r}"
    rows = (
        ("UA", parts.forget, True, "100 - accuracy on the forget set D_f"),
        ("100-RA", parts.retain, True, "error on the retain set D_r: loss of accuracy that is not forgetting"),
        ("RA", parts.retain, False, "accuracy on the retain set D_r"),
        ("TA", test, False, f"accuracy on {test_records}"),
    )
    scores = []
    for name, predictions, error, definition in rows:
        percent = accuracy(predictions)
        hits, total = int(predictions.correct.sum()), len(predictions)
        scores.append(
            Score(
                name,
                100.0 - percent if error else percent,
                "%",
                "reference",
                f"{definition} ({total} records, no augmentation, evaluation mode).",
                "this project; reported with UA, which also rises with general damage"
                if name == "100-RA"
                else CITATION,
                interval=wilson_interval(total - hits if error else hits, total),
            )
        )
    return tuple(scores)
