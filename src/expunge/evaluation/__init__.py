"""Scores of a model against a forget request: accuracies, membership attacks, disparity, aggregation over seeds.

Names are imported on first use, so that reading and summarising saved scores does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .aggregate import Spread, Summary, disparity_of_means, summarise, summary_text
    from .auc import Separation, separation
    from .histograms import class_table, confidence_histogram
    from .noise import noise_floors
    from .predictions import Parts, Predictions, predict_parts
    from .score import DIRECTIONS, Interval, Score, Scores
    from .scores.disparity import disparity_average
    from .scores.membership import svc_attack
    from .suites import evaluate, legacy_suite

_HOME = {
    "aggregate": ("Spread", "Summary", "disparity_of_means", "summarise", "summary_text"),
    "auc": ("Separation", "separation"),
    "scores.disparity": ("disparity_average",),
    "histograms": ("class_table", "confidence_histogram"),
    "scores.membership": ("svc_attack",),
    "noise": ("noise_floors",),
    "predictions": ("Parts", "Predictions", "predict_parts"),
    "score": ("DIRECTIONS", "Interval", "Score", "Scores"),
    "suites": ("evaluate", "legacy_suite"),
}

__all__ = [
    "DIRECTIONS",
    "Interval",
    "Parts",
    "Predictions",
    "Score",
    "Scores",
    "Separation",
    "Spread",
    "Summary",
    "class_table",
    "confidence_histogram",
    "disparity_average",
    "disparity_of_means",
    "evaluate",
    "legacy_suite",
    "noise_floors",
    "predict_parts",
    "separation",
    "summarise",
    "summary_text",
    "svc_attack",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            return getattr(importlib.import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
