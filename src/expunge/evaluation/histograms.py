"""Data of the report's figures: confidence histograms of forget set, retain set and non-members; accuracy by class."""

from __future__ import annotations

from typing import Any

import numpy as np

from expunge.core.errors import ConfigError
from expunge.evaluation.scores.accuracy import class_accuracy

from .predictions import Parts
from .score import HISTOGRAM_PARTS


def compute_confidence_histogram(parts: Parts, bins: int = 20) -> dict[str, Any]:
    """Count records by the confidence in their true label, in equal bins of [0, 1].

    Args:
        parts: predictions of the model.
        bins: number of bins.

    Returns:
        `{"edges": ..., "parts": {"forget" | "retain" | "non_members": {"records", "counts", "fractions"}}}`:
        `bins + 1` edges, and a count and a fraction of the part's records for each bin. The last bin includes 1.0. The
        fractions of a part sum to 1 (all are 0 for an empty part). `non_members` is the non-member pool.

    Raises:
        ConfigError: fewer than one bin.

    Examples:
        >>> import numpy as np
        >>> from expunge.evaluation import Parts, Predictions, compute_confidence_histogram
        >>> logits, ids = np.array([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]]), np.array(["a", "b", "c"])
        >>> every = Predictions(logits, np.array([0, 1, 1]), ids)  # the third record is misclassified
        >>> parts = Parts(every, every, every, every, every, class_names=("cat", "dog"))
        >>> compute_confidence_histogram(parts, bins=2)["parts"]["forget"]["counts"]
        [1, 2]
    """
    if bins < 1:
        raise ConfigError(f"a histogram of {bins} bins", where="bins", hint="use 1 or more")
    body: dict[str, Any] = {}
    for name in HISTOGRAM_PARTS:
        confidence = getattr(parts, name).confidence
        counts, _ = np.histogram(confidence, bins=bins, range=(0.0, 1.0))
        body[name] = {
            "records": len(confidence),
            "counts": counts.tolist(),
            "fractions": (counts / max(1, len(confidence))).tolist(),
        }
    return {"edges": np.linspace(0.0, 1.0, bins + 1).tolist(), "parts": body}


def tabulate_classes(parts: Parts) -> list[dict[str, Any]]:
    """Tabulate the accuracy on each class, one dictionary a class.

    Args:
        parts: predictions of the model.

    Returns:
        `{"class", "forgotten", "forget" | "retain" | "test": {"records", "accuracy"}}`, accuracy in %, or None if the
        part has no record of the class. `test` is the whole test set, including a forgotten class.

    Examples:
        >>> import numpy as np
        >>> from expunge.evaluation import Parts, Predictions, tabulate_classes
        >>> logits, ids = np.array([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]]), np.array(["a", "b", "c"])
        >>> every = Predictions(logits, np.array([0, 1, 1]), ids)  # the third record is misclassified
        >>> parts = Parts(every, every, every, every, every, class_names=("cat", "dog"))
        >>> [(row["class"], row["test"]["accuracy"]) for row in tabulate_classes(parts)]
        [('cat', 100.0), ('dog', 50.0)]
    """
    columns = {
        name: class_accuracy(getattr(parts, name), len(parts.class_names)) for name in ("forget", "retain", "test")
    }
    rows = []
    for index, label in enumerate(parts.class_names):
        row: dict[str, Any] = {"class": label, "forgotten": index == parts.forgotten_class}
        for name, (accuracies, counts) in columns.items():
            present = int(counts[index]) > 0
            row[name] = {"records": int(counts[index]), "accuracy": float(accuracies[index]) if present else None}
        rows.append(row)
    return rows
