"""Test a plan's claims on its cells: paired differences with a t interval, and a verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from expunge.evaluation.facts import score_facts
from expunge.evaluation.seeds import LEVEL, mean, spread, t_interval
from expunge.experiments.config.plan_file import Claim
from expunge.experiments.config.selections import matches

from .groups import group_by_labels

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

    A difference of two scores, such as the IoU gain, is computed from them where it was not measured.
    An average of gaps, such as the disparity average, is 0 for a reference that has all scores that enter the average.
    """
    plain = name.removeprefix("gap:")
    own = cell["scores"].get(plain)
    if own is None and cell["is_reference"]:
        terms = score_facts(plain).averages
        own = 0.0 if terms and all(term in cell["scores"] for term in terms) else None
    if own is None and (terms := score_facts(plain).difference):
        values = [cell["scores"].get(term) for term in terms]
        own = None if None in values else values[0] - values[1]
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
    interval = t_interval(gains)
    if interval is not None:
        low, high = interval
        verdict = HOLDS if low > claim.by else FAILS if high < claim.by else NOISE
        result.update(interval=[low, high], verdict=verdict)
    return result
