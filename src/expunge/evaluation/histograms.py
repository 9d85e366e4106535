"""What a report draws: confidence histograms of forget, retain and unseen records, and accuracies by class."""

from __future__ import annotations

from typing import Any

import numpy as np

from expunge.core.errors import ConfigError
from expunge.evaluation.scores.accuracy import class_accuracy

from .predictions import Parts

PARTS_SHOWN = ("forget", "retain", "unseen")


def confidence_histogram(parts: Parts, bins: int = 20) -> dict[str, Any]:
    """Shares of records by confidence of the true label, in equal bins of [0, 1].

    Returns:
        `{"edges": bins + 1 numbers, "parts": {"forget" | "retain" | "unseen": {"records", "counts", "shares"}}}`, JSON
        values; the last bin holds 1.0; shares of a part add up to 1 (0 for an empty part).

    Raises:
        ConfigError: fewer than one bin.
    """
    if bins < 1:
        raise ConfigError(f"a histogram of {bins} bins", where="bins", hint="use 1 or more")
    body: dict[str, Any] = {}
    for name in PARTS_SHOWN:
        confidence = (parts.non_members if name == "unseen" else getattr(parts, name)).confidence
        counts, _ = np.histogram(confidence, bins=bins, range=(0.0, 1.0))
        body[name] = {
            "records": len(confidence),
            "counts": counts.tolist(),
            "shares": (counts / max(1, len(confidence))).tolist(),
        }
    return {"edges": np.linspace(0.0, 1.0, bins + 1).tolist(), "parts": body}


def class_table(parts: Parts) -> list[dict[str, Any]]:
    """Accuracy by class: one dictionary a class.

    Returns:
        `{"class", "forgotten", "forget" | "retain" | "test": {"records", "accuracy"}}`; accuracy in %, None where a
        part has no record of the class. The test column is whole, the forgotten class included.
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
