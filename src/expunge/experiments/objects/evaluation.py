"""The section `evaluation`: the scores that it names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from expunge.evaluation.registry.definition import ScoreDefinition


def check_scores(section: Mapping[str, Any]) -> list[ScoreDefinition]:
    """Find the scores of the key `scores`.

    Raises:
        ConfigError: a score is unknown, or a plug-in cannot be imported.
        TrustError: one is named by a reference, to code that the owner did not agree to run.
    """
    from expunge.evaluation.registry.measure import find_scores

    return find_scores(section["scores"])
