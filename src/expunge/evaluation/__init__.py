"""Scores of a model against a forget request: accuracies, membership attacks, mask overlaps, summaries over seeds.

Names are imported on first use, so that reading and summarising saved scores does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from expunge.core.lazy import import_on_use

if TYPE_CHECKING:
    from .auc import Separation, separation
    from .error_bound import BoundTerms, measure_bound_terms, weight_distance
    from .facts import ScoreFacts, score_facts
    from .histograms import compute_confidence_histogram, tabulate_classes
    from .leakage.mask_attack import Leakage, extract_mask_features, measure_topology_leakage
    from .predictions import Parts, Predictions, predict_parts
    from .registry.definition import Measurement, Missing, register_score
    from .registry.docs_page import list_scores
    from .registry.inputs import ScoreInputs
    from .score import DIRECTIONS, Interval, Score, Scores, ScoreWarning
    from .scores.accuracy import accuracy
    from .scores.disparity import disparity_average
    from .scores.membership import run_svc_attack
    from .scores.retrained_distance import disagreement, kl_to_retrained
    from .seeds import SeedSummary, Spread, disparity_of_means, format_summaries, noise_floors, summarise
    from .suites import evaluate, score_legacy
    from .topology import (
        NormalisedOverlap,
        density_divergence,
        hamming_distance,
        iou,
        layer_iou,
        normalised_overlap,
        random_iou,
    )

_HOME = {
    "auc": ("Separation", "separation"),
    "error_bound": ("BoundTerms", "measure_bound_terms", "weight_distance"),
    "facts": ("ScoreFacts", "score_facts"),
    "histograms": ("compute_confidence_histogram", "tabulate_classes"),
    "leakage.mask_attack": ("Leakage", "extract_mask_features", "measure_topology_leakage"),
    "predictions": ("Parts", "Predictions", "predict_parts"),
    "registry.definition": ("Measurement", "Missing", "register_score"),
    "registry.docs_page": ("list_scores",),
    "registry.inputs": ("ScoreInputs",),
    "score": ("DIRECTIONS", "Interval", "Score", "ScoreWarning", "Scores"),
    "scores.accuracy": ("accuracy",),
    "scores.disparity": ("disparity_average",),
    "scores.membership": ("run_svc_attack",),
    "scores.retrained_distance": ("disagreement", "kl_to_retrained"),
    "seeds": ("SeedSummary", "Spread", "disparity_of_means", "format_summaries", "noise_floors", "summarise"),
    "suites": ("evaluate", "score_legacy"),
    "topology": (
        "NormalisedOverlap",
        "density_divergence",
        "hamming_distance",
        "iou",
        "layer_iou",
        "normalised_overlap",
        "random_iou",
    ),
}

__all__ = [
    "DIRECTIONS",
    "BoundTerms",
    "Interval",
    "Leakage",
    "Measurement",
    "Missing",
    "NormalisedOverlap",
    "Parts",
    "Predictions",
    "Score",
    "ScoreFacts",
    "ScoreInputs",
    "ScoreWarning",
    "Scores",
    "SeedSummary",
    "Separation",
    "Spread",
    "accuracy",
    "compute_confidence_histogram",
    "density_divergence",
    "disagreement",
    "disparity_average",
    "disparity_of_means",
    "evaluate",
    "extract_mask_features",
    "format_summaries",
    "hamming_distance",
    "iou",
    "kl_to_retrained",
    "layer_iou",
    "list_scores",
    "measure_bound_terms",
    "measure_topology_leakage",
    "noise_floors",
    "normalised_overlap",
    "predict_parts",
    "random_iou",
    "register_score",
    "run_svc_attack",
    "score_facts",
    "score_legacy",
    "separation",
    "summarise",
    "tabulate_classes",
    "weight_distance",
]

import_on_use(__name__, _HOME)
