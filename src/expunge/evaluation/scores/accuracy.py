"""Accuracies of the legacy suite: UA, RA, TA, and the damage that is not forgetting."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from expunge.core.errors import DataError
from expunge.evaluation.predictions import Floats, Parts, Predictions
from expunge.evaluation.score import Interval, Score

SOURCE = "Jia et al., Model Sparsity Can Simplify Machine Unlearning, NeurIPS 2023, section 5"


def accuracy(predictions: Predictions) -> float:
    """100 * mean(argmax logits = label), in %.

    Raises:
        DataError: there are no records.
    """
    if len(predictions) == 0:
        raise DataError("accuracy of no records", hint="the part of the split is empty")
    return 100.0 * float(predictions.correct.mean())


def wilson(successes: int, total: int, level: float = 0.95) -> Interval:
    """Wilson's interval of a proportion, in % [Wilson1927]_.

    (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n).

    .. [Wilson1927] Wilson: Probable inference, the law of succession, and statistical inference, JASA 22.
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
    """Accuracy in % of each class (`K` numbers, NaN for a class without records) and the `K` record counts."""
    counts = np.bincount(predictions.labels, minlength=classes)
    hits = np.bincount(predictions.labels[predictions.correct], minlength=classes)
    with np.errstate(invalid="ignore", divide="ignore"):
        return 100.0 * hits / counts, counts


def accuracy_scores(parts: Parts) -> tuple[Score, ...]:
    """UA, 100-RA, RA and TA with Wilson intervals; class-wise forgetting leaves the forgotten class out of TA."""
    test = parts.legacy_test
    of_test = "the test records"
    if parts.forgotten_class is not None:
        of_test += f" outside the forgotten class {parts.class_names[parts.forgotten_class]!r}"
    rows = (
        ("UA", parts.forget, True, "100 - accuracy on the forget set D_f"),
        ("100-RA", parts.retain, True, "error on the retain set D_r: the part of UA that is plain damage"),
        ("RA", parts.retain, False, "accuracy on the retain set D_r"),
        ("TA", test, False, f"accuracy on {of_test}"),
    )
    scores = []
    for name, predictions, error, definition in rows:
        share = accuracy(predictions)
        hits, total = int(predictions.correct.sum()), len(predictions)
        scores.append(
            Score(
                name,
                100.0 - share if error else share,
                "%",
                "reference",
                f"{definition} ({total} records, no augmentation, evaluation mode).",
                "reported beside UA: much of UA can be generic damage" if name == "100-RA" else SOURCE,
                interval=wilson(total - hits if error else hits, total),
            )
        )
    return tuple(scores)
