"""A report like that of the demo: two requests, dense and 90 % sparse, four methods; all numbers are invented."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np

from expunge.report import (
    Comparison,
    Histogram,
    ModelResult,
    ReportContent,
    RequestSummary,
    Scenario,
    average_over_seeds,
    read_scores,
)

CLASSES = tuple(str(digit) for digit in range(10))
DEFINITIONS = {
    "UA": "Unlearning accuracy: 100 minus the accuracy on the forget set.",
    "RA": "Remaining accuracy: accuracy on the retain set.",
    "TA": "Test accuracy; a forgotten class is left out of the test records.",
    "MIA-Efficacy": "Fraction of the forget set that a confidence attack (SVC, fitted on retain and test records) "
    "predicts to be non-members.",
    "MIA-Privacy": "Balanced accuracy of the same attack on the retained records: how well it finds members.",
    "AUC": "Area under the curve of the confidence attack, forget set against the non-member pool, balanced; bootstrap "
    "interval of 95 %.",
    "Disparity average": "Mean of the absolute gaps of UA, MIA-Efficacy, RA and TA to Retrain.",
}
# UA, RA, TA, MIA-Efficacy, MIA-Privacy, AUC
RANDOM = {
    "Original": (0.0, 100.0, 97.5, 1.4, 55.1, 0.571),
    "Retrain": (3.33, 100.0, 97.22, 9.72, 54.4, 0.507),
    "FT": (1.39, 100.0, 97.08, 5.56, 54.9, 0.541),
    "GA": (6.94, 93.4, 92.78, 11.11, 53.0, 0.433),
    "l1-sparse": (2.78, 99.8, 97.22, 9.31, 54.1, 0.512),
}
CLASS = {
    "Original": (0.0, 100.0, 97.5, 2.1, 55.1, 0.566),
    "Retrain": (100.0, 100.0, 97.9, 100.0, 54.6, 0.043),
    "FT": (31.5, 100.0, 97.6, 62.2, 55.0, 0.211),
    "GA": (97.9, 95.1, 94.1, 98.6, 52.9, 0.055),
    "l1-sparse": (100.0, 99.7, 97.6, 100.0, 54.4, 0.041),
}
COST = {"Retrain": (40.0, 6.13), "FT": (4.0, 0.62), "GA": (0.24, 0.04), "l1-sparse": (4.0, 0.71)}
LAYERS = {"conv1.weight": 0.41, "conv2.weight": 0.112, "conv3.weight": 0.083, "features.3.conv.weight": 0.064}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def scores(values: tuple[float, ...], reference: tuple[float, ...], method: str) -> dict[str, dict[str, object]]:
    """Scores as the evaluation package writes them."""
    out: dict[str, dict[str, object]] = {}
    for name, value, ref in zip(list(DEFINITIONS)[:6], values, reference, strict=True):
        out[name] = {
            "name": name,
            "value": value,
            "unit": "" if name == "AUC" else "%",
            "direction": "lower" if name == "MIA-Privacy" else "reference",
            "reference": ref,
            "gap": abs(value - ref),
            "interval": {"low": round(value - 0.06, 3), "high": round(value + 0.06, 3), "level": 0.95}
            if name == "AUC"
            else None,
            "definition": DEFINITIONS[name],
        }
    if method not in ("Original", "Retrain"):
        gaps = [abs(values[i] - reference[i]) for i in (0, 1, 2, 3)]
        name = "Disparity average"
        out[name] = {"name": name, "value": sum(gaps) / 4, "unit": "points", "direction": "lower",
                     "definition": DEFINITIONS[name]}  # fmt: skip
    return out


def outcome(method: str, request: dict[str, object], sparse: bool) -> dict[str, object]:
    """The body of an `outcome.json`."""
    passes, seconds = COST[method]
    still = ["mask"] if sparse else []
    if method == "GA":
        still = ["batch_norm", *still]
    rewrote = ["weights"] if method == "GA" else ["weights", "batch_norm"]
    return {
        "request": request,
        "method": {"name": method, "options": {"epochs": 4, "learning_rate": 0.01, "batch_norm": "trained"},
                   "guarantee": "exact" if method == "Retrain" else "empirical"},
        "cost": {"passes": passes, "seconds": seconds},
        "state": {
            "rewrote": rewrote,
            "dropped": ["rewind_checkpoint"] if sparse else [],
            "carried": still,
            "meaning": {"weights": "the parameters", "batch_norm": "running means and variances of BatchNorm layers",
                        "mask": "which weights are kept", "rewind_checkpoint": "early weights, stored for rewinding"},
        },
        "hashes": {"data": _digest("data"), "split": _digest("split"), "weights": _digest(method),
                   "mask": _digest("mask") if sparse else None},
        "seeds": {"initial": 0, "order": 0, "method": 0},
        "provenance": {
            "architecture": {"name": "small-cnn", "options": {"width": 16}, "input_shape": [1, 8, 8], "classes": 10},
            "data": {"name": "digits", "hash": _digest("data")},
            "recipe": {"name": "one-cycle", "epochs": 40, "learning_rate": 0.1, "weight_decay": 5e-4},
            "history": ["trained for 40 epochs", f"{method} on {request['records']} records"],
        },
    }  # fmt: skip


def _confidence(method: str, whole_class: bool, rng: np.random.Generator) -> dict[str, Histogram]:
    forget = {"Original": (30, 0.8), "FT": (18, 0.9), "GA": (6, 1.2), "l1-sparse": (9, 0.8), "Retrain": (10, 0.8)}
    if whole_class and method != "Original":
        forget = {"FT": (2.0, 1.4), "GA": (0.3, 6), "l1-sparse": (0.25, 12), "Retrain": (0.25, 14)}
    spans = {"forget": (forget[method], 143 if whole_class else 72), "retain": ((30, 0.8), 1221),
             "non_members": ((10, 0.8), 180)}  # fmt: skip
    return {part: Histogram.from_values(rng.beta(*shape, size=size)) for part, (shape, size) in spans.items()}


def _models(numbers: dict[str, tuple[float, ...]], request: dict[str, object], sparse: bool, seeds: int):
    rng = np.random.default_rng(7 + sparse)
    whole_class = request["forgotten_class"] is not None
    for method, values in numbers.items():
        runs = []
        for seed in range(seeds):
            noise = rng.normal(0, 0.35, size=6) * (1, 0.05, 1, 2, 0.5, 0.01) * (seeds > 1)
            shifted = tuple(np.clip(np.asarray(values) + noise, 0, 100).round(3).tolist())
            runs.append(
                read_scores({"seed": seed, "scores": list(scores(shifted, numbers["Retrain"], method).values())})
            )
        accuracy = np.clip(rng.normal(values[2], 1.6, size=10), 0, 100).round(1)
        if whole_class and method != "Original":
            accuracy[3] = round(100 - values[0], 1)
        measured = {
            "scores": average_over_seeds(runs),
            "class_accuracy": tuple(accuracy.tolist()),
            "confidence": _confidence(method, whole_class, rng),
            "density": dict(LAYERS) if sparse else {},
        }
        if method == "Original":
            hashes = {"weights": _digest("original"), "mask": _digest("mask") if sparse else None}
            yield ModelResult(method, "original", hashes=hashes, **measured)
        else:
            role = "retrained" if method == "Retrain" else "unlearned"
            yield dataclasses.replace(ModelResult.from_outcome(outcome(method, request, sparse), role=role), **measured)


def sample(seeds: int = 3) -> ReportContent:
    """The sample report; with one seed there is no noise floor."""
    ids = [f"digits/train/{row:05d}" for row in range(3, 1440, 20)]
    random_request = {"hash": _digest("random"), "records": 72,
                      "selection": {"by": "random", "fraction": 0.05, "seed": 0},
                      "forgotten_class": None, "record_ids": ids}  # fmt: skip
    class_ids = [f"digits/train/{row:05d}" for row in range(4, 1434, 10)]
    class_request = {"hash": _digest("class"), "records": 143, "selection": {"by": "class", "index": 3},
                     "forgotten_class": 3, "record_ids": class_ids}  # fmt: skip
    scenarios = []
    for title, request, numbers in (("5 % random records", random_request, RANDOM), ("Class 3", class_request, CLASS)):
        comparisons = (
            Comparison("dense", tuple(_models(numbers, request, False, seeds))),
            Comparison("90 % sparse", tuple(_models(numbers, request, True, seeds))),
        )
        scenarios.append(Scenario(title, RequestSummary.from_json(request, retained=1293), comparisons, CLASSES))
    return ReportContent(
        title="Forgetting digits",
        scenarios=tuple(scenarios),
        data="digits",
        architecture="small-cnn",
        provenance={"command": "expunge demo", "plan": {"seeds": list(range(seeds)), "device": "cpu"}},
        versions={"expunge": "0.1.0", "python": "3.11.7", "torch": "2.13.0", "numpy": "2.2.0"},
        created="2026-01-15",
    )
