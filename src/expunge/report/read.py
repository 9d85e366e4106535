"""From the files and bodies of a run to the content of a report."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from expunge.evaluation.noise import noise_floors

from .content import Histogram, Score, finite


def read_scores(body: Mapping[str, Any] | Iterable[Mapping[str, Any]]) -> dict[str, Score]:
    """Scores by name, from a list of dictionaries, a mapping of name to dictionary, or a body with a key `scores`."""
    if isinstance(body, Mapping):
        if "scores" in body:
            return read_scores(body["scores"])
        return {name: Score.from_json(score, name) for name, score in body.items() if isinstance(score, Mapping)}
    scores = [Score.from_json(score) for score in body]
    return {score.name: score for score in scores}


def average_over_seeds(
    runs: Sequence[Mapping[str, Score]], models: Sequence[str | None] | None = None
) -> dict[str, Score]:
    """Mean over seeds with the sample standard deviation (n - 1) as `spread`; one run comes back as it is.

    A score that some run could not measure has no value. The interval of a single run says nothing about the mean and
    is dropped.

    Args:
        runs: scores by name, one mapping a run.
        models: hash of the weights of each run: runs of one model count once for `noise_floor` (see
            `expunge.evaluation.noise_floors`). Without it every run is a model.
    """
    if len(runs) == 1:
        return dict(runs[0])
    values = [{name: score.value for name, score in run.items() if score.value is not None} for run in runs]
    floors = noise_floors(values, models)
    names = list(dict.fromkeys(name for run in runs for name in run))
    return {name: _mean([run.get(name) for run in runs], floors.get(name)) for name in names}


def _mean(scores: Sequence[Score | None], floor: float | None) -> Score:
    present = [score for score in scores if score is not None]
    first, count = present[0], len(scores)
    values = [score.value for score in present if score.value is not None]
    if len(values) < count:
        missing = f"measured for {len(values)} of {count} seeds"
        return dataclasses.replace(first, value=None, gap=None, interval=None, seeds=count, missing=missing)
    references = [score.reference for score in present if score.reference is not None]
    gaps = [score.gap for score in present if score.gap is not None]
    return dataclasses.replace(
        first,
        value=statistics.fmean(values),
        spread=statistics.stdev(values),
        noise_floor=floor,
        reference=statistics.fmean(references) if len(references) == count else None,
        gap=statistics.fmean(gaps) if len(gaps) == count else None,
        interval=None,
        seeds=count,
    )


def read_histograms(body: Mapping[str, Any]) -> dict[str, Histogram]:
    """Histograms by part, from `{"edges": [...], "parts": {part: {"counts": [...]}}}`."""
    edges = tuple(map(float, body["edges"]))
    return {part: Histogram(edges, tuple(map(int, entry["counts"]))) for part, entry in body["parts"].items()}


def read_class_accuracy(rows: Iterable[Mapping[str, Any]], part: str = "test") -> tuple[float | None, ...]:
    """Accuracy in per cent for each class on one part, from rows `{"class", part: {"records", "accuracy"}}`."""
    return tuple(finite((row.get(part) or {}).get("accuracy")) for row in rows)
