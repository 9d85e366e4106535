"""Measure scores: all built-in ones whose needs are met, and those that are named."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from expunge.core.registry import SCORES
from expunge.evaluation.facts import built_in_facts
from expunge.evaluation.score import Score

from .definition import Missing, ScoreDefinition
from .inputs import ScoreInputs


def find_scores(names: Iterable[str]) -> list[ScoreDefinition]:
    """The definitions of named scores: built-in ones, plug-ins, `package.module:name`.

    Raises:
        TrustError: a name from a file is custom code that the user has not agreed to run; it was not imported.
        ConfigError: a name is unknown.
    """
    found: list[ScoreDefinition] = [SCORES.get(name) for name in names]
    return found


def measure_score(name: str, inputs: ScoreInputs) -> Score | Missing:
    """Measure one score; see `measure_scores`."""
    (definition,) = find_scores([name])
    return definition.run(inputs)


def measure_scores(inputs: ScoreInputs, names: Sequence[str] = ()) -> tuple[list[Score], list[str]]:
    """Measure all built-in scores whose needs are met, except those on request, and further scores by name.

    A score of a name that is missing has a note with the reason; a built-in one only if its function gives a reason.
    Scores whose needs are not met are not imported.

    Args:
        inputs: what the scores are computed from; `inputs.measured` has the results afterwards, and `inputs.missing`
            the reasons of scores that tables show as not measured.
        names: further scores.

    Returns:
        The scores in the order of the tables, and the notes.

    Raises:
        TrustError: a name from a file is custom code that the user has not agreed to run; it was not imported.
        ConfigError: a name is unknown, or its function failed or returned something else than a finite number.
    """
    offered = [facts for facts in built_in_facts().values() if not facts.on_request]
    built_in = [facts.name for facts in offered if all(map(inputs.has, facts.needs))]
    named = {found.name: found for found in find_scores(names)}
    definitions = {found.name: found for found in find_scores(built_in)} | named
    reference = inputs.reference if inputs.has("reference") else None
    notes = []
    for definition in sorted(definitions.values(), key=lambda one: (one.facts.position, one.name)):
        found = definition.run(inputs)
        if isinstance(found, Missing):
            notes += [found.note] if found.note else []
            inputs.missing.update({definition.name: found.reason} if found.reason else {})
            continue
        if reference is not None and definition.facts.compared:
            found = dataclasses.replace(found, reference=reference.value(found.name))
            if found.reference is None and not definition.is_built_in:
                notes.append(f"{found.name} has no gap: the reference has no such score")
        inputs.measured[found.name] = found
    return list(inputs.measured.values()), sorted(notes)
