"""Test a plan's claims on its cells: paired differences with a t interval, and a verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from expunge.evaluation.scores.disparity import NAME as DISPARITY
from expunge.evaluation.scores.disparity import TERMS
from expunge.experiments.config.plan_file import Claim
from expunge.experiments.config.selections import matches

from .groups import group_by_labels

LEVEL = 0.95
HOLDS, FAILS, NOISE, UNTESTED = "holds", "does not hold", "within noise", "not tested"


def check_claim(claim: Claim, cells: Sequence[Mapping[str, Any]], axes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Test one claim.

    Cells of the two groups form a pair if their labels agree on every axis that `compare` does not name, including the
    seeds. The gain of a pair is factor * second - first for `lower`, and first - factor * second for `higher`. The
    pairs give a mean gain and its two-sided 95 % t interval (pairs - 1 degrees of freedom). The claim *holds* if the
    interval is above `by`, *does not hold* if it is below, and is *within noise* otherwise. With fewer than two pairs
    it is *not tested*.

    Args:
        claim: of the plan.
        cells: of the results: `labels`, `scores`, `reference`.
        axes: of the results: `name`, `labels`.

    Returns:
        The claim as a dictionary with `checks`, one for every combination of labels of the axes `each`.
    """
    body = claim.to_json()
    by_name = {axis["name"]: axis for axis in axes}
    checks = []
    for choice, members in group_by_labels(cells, [by_name[name] for name in claim.each]):
        at = dict(zip(claim.each, choice, strict=True))
        check = _check(claim, members, cells, at)
        if check is not None:
            checks.append(check)
    return {**body, "level": LEVEL, "checks": checks}


def cell_score(cell: Mapping[str, Any], cells: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """A score of a cell, or with `gap:NAME` its distance to the score of the reference; None if it is missing.

    The disparity average of a reference is 0 if the reference has the four scores that enter the average.
    """
    plain = name.removeprefix("gap:")
    own = cell["scores"].get(plain)
    if own is None and plain == DISPARITY and cell["is_reference"] and all(term in cell["scores"] for term in TERMS):
        own = 0.0
    if plain == name or own is None:
        return own
    other = cells[cell["reference"]]["scores"].get(plain)
    return None if other is None else abs(own - other)


def _check(
    claim: Claim, members: Sequence[Mapping[str, Any]], cells: Sequence[Mapping[str, Any]], at: Mapping[str, str]
) -> dict[str, Any] | None:
    groups: list[dict[tuple[tuple[str, str], ...], float]] = []
    compared = {axis for group in claim.compare for axis in group}
    any_cell = False
    for group in claim.compare:
        found = {}
        for cell in members:
            labels = cell["labels"]
            if not (matches(labels, claim.where) and matches(labels, group)):
                continue
            any_cell = True
            value = cell_score(cell, cells, claim.score)
            if value is not None:
                found[tuple((k, v) for k, v in labels.items() if k not in compared)] = value
        groups.append(found)
    if not any_cell:
        return None
    first, second = groups
    pairs = sorted(first.keys() & second.keys())
    sign = 1 if claim.expect == "lower" else -1
    gains = [sign * (claim.factor * second[p] - first[p]) for p in pairs]
    result: dict[str, Any] = {
        "at": dict(at),
        "pairs": len(pairs),
        "first": mean([first[p] for p in pairs]),
        "second": mean([second[p] for p in pairs]),
        "gain": mean(gains),
        "spread": spread(gains),
        "interval": None,
        "verdict": UNTESTED,
    }
    if len(gains) >= 2:
        low, high = t_interval(gains)
        verdict = HOLDS if low > claim.by else FAILS if high < claim.by else NOISE
        result.update(interval=[low, high], verdict=verdict)
    return result


def mean(values: Sequence[float]) -> float | None:
    """Arithmetic mean; None without values."""
    return math.fsum(values) / len(values) if values else None


def spread(values: Sequence[float]) -> float | None:
    """Sample standard deviation (n - 1); None with fewer than two values."""
    if len(values) < 2:
        return None
    centre = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1))


def t_interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float]:
    """Two-sided t interval of the mean: mean +- t((1 + level) / 2, n - 1) * spread / sqrt(n), for n >= 2."""
    from scipy.special import stdtrit

    centre, std = mean(values), spread(values)
    assert centre is not None
    assert std is not None
    half = float(stdtrit(len(values) - 1, (1 + level) / 2)) * std / math.sqrt(len(values))
    return centre - half, centre + half
