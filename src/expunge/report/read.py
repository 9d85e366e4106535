"""Read the files of a run into the content of a report."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from expunge.evaluation.score import Scores
from expunge.evaluation.seeds import Spread, mean, noise_floors

from .values import Histogram, ReportScore, as_finite


def read_scores(body: Scores | Mapping[str, Any] | Iterable[Mapping[str, Any]]) -> dict[str, ReportScore]:
    """Read scores from `expunge.evaluation.Scores`, from the JSON values of `scores.json`, or of a part of it.

    Args:
        body: scores, a list of dictionaries, a mapping from name to dictionary, or a mapping with the key `scores`.

    Returns:
        Scores by name, also those in `Scores.missing`; keys that the report does not use are ignored.

    Raises:
        DataError: a direction is unknown.

    Examples:
        >>> from expunge.report import read_scores
        >>> scores = read_scores([{"name": "UA", "value": 6.0, "unit": "%", "reference": 5.0}])
        >>> scores["UA"].signed_gap
        1.0
    """
    if isinstance(body, Scores):
        found = {score.name: ReportScore.from_score(score) for score in body}
        return found | {name: ReportScore.not_measured(name, reason) for name, reason in body.missing.items()}
    if isinstance(body, Mapping):
        if "scores" in body:
            return read_scores(body["scores"])
        return {name: ReportScore.from_json(score, name) for name, score in body.items() if isinstance(score, Mapping)}
    scores = [ReportScore.from_json(score) for score in body]
    return {score.name: score for score in scores}


def average_over_seeds(
    runs: Sequence[Mapping[str, ReportScore]], models: Sequence[str | None] | None = None
) -> dict[str, ReportScore]:
    """Average scores over seeds, with the sample standard deviation (n - 1) as `spread`; one run is returned unchanged.

    A score that is missing in a run has no mean. The interval of a run is dropped, because it is not an interval of the
    mean.

    Args:
        runs: scores by name, one mapping a run.
        models: hash of the weights of each run; runs with equal hashes count once for `noise_floor` (see
            `expunge.evaluation.noise_floors`). None: every run is a distinct model.

    Returns:
        Scores by name, each with mean, spread, noise floor and number of seeds.

    Examples:
        >>> from expunge.report import average_over_seeds, read_scores
        >>> runs = [read_scores([{"name": "UA", "value": value}]) for value in (4.0, 6.0, 8.0)]
        >>> score = average_over_seeds(runs)["UA"]
        >>> score.value, score.spread, score.seeds
        (6.0, 2.0, 3)
    """
    if len(runs) == 1:
        return dict(runs[0])
    values = [{name: score.value for name, score in run.items() if score.value is not None} for run in runs]
    floors = noise_floors(values, models)
    names = list(dict.fromkeys(name for run in runs for name in run))
    return {name: _average([run.get(name) for run in runs], floors.get(name)) for name in names}


def _average(scores: Sequence[ReportScore | None], floor: float | None) -> ReportScore:
    present = [score for score in scores if score is not None]
    first, count = present[0], len(scores)
    values = [score.value for score in present if score.value is not None]
    if len(values) < count:
        missing = f"measured for {len(values)} of {count} seeds" if values or not first.missing else first.missing
        return dataclasses.replace(first, value=None, gap=None, interval=None, seeds=count, missing=missing)
    references = [score.reference for score in present if score.reference is not None]
    gaps = [score.gap for score in present if score.gap is not None]
    over_seeds = Spread.from_values(values)
    return dataclasses.replace(
        first,
        value=over_seeds.mean,
        spread=over_seeds.std,
        noise_floor=floor,
        reference=mean(references) if len(references) == count else None,
        gap=mean(gaps) if len(gaps) == count else None,
        interval=None,
        seeds=count,
    )


def read_histograms(body: Mapping[str, Any]) -> dict[str, Histogram]:
    """Read histograms from `confidence` of `details.json`.

    Args:
        body: `{"edges": [...], "parts": {part: {"counts": [...]}}}`.

    Returns:
        Histograms by part.

    Raises:
        DataError: edges and counts do not fit, or a count is negative.

    Examples:
        >>> from expunge.report import read_histograms
        >>> read_histograms({"edges": [0.0, 0.5, 1.0], "parts": {"forget": {"counts": [1, 3]}}})["forget"].fractions
        (0.25, 0.75)
    """
    edges = tuple(map(float, body["edges"]))
    return {part: Histogram(edges, tuple(map(int, entry["counts"]))) for part, entry in body["parts"].items()}


def read_class_accuracy(rows: Iterable[Mapping[str, Any]], part: str = "test") -> tuple[float | None, ...]:
    """Read the accuracy in % on each class from `classes` of `details.json`.

    Args:
        rows: `{"class", part: {"records", "accuracy"}}`, one a class.
        part: `forget`, `retain` or `test`.

    Returns:
        One accuracy a class, None where there is none.

    Examples:
        >>> from expunge.report import read_class_accuracy
        >>> rows = [{"class": "cat", "test": {"accuracy": 75.0}}, {"class": "dog", "test": {"accuracy": None}}]
        >>> read_class_accuracy(rows)
        (75.0, None)
    """
    return tuple(as_finite((row.get(part) or {}).get("accuracy")) for row in rows)
