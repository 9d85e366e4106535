"""Measure scores by name from given inputs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from expunge.evaluation import Score, ScoreInputs
from expunge.evaluation.facts import built_in_facts
from expunge.evaluation.registry.measure import measure_score


def measure(names: Iterable[str], **given: Any) -> dict[str, Score]:
    """The scores of these names that are not missing; `given` are arguments of `ScoreInputs`."""
    inputs = ScoreInputs(**given)
    found = {name: measure_score(name, inputs) for name in names}
    return {name: score for name, score in found.items() if isinstance(score, Score)}


def names_with(need: str) -> list[str]:
    """The built-in scores that need this."""
    return [name for name, facts in built_in_facts().items() if need in facts.needs]
