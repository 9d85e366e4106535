"""What the rules of `limits` share: a limit, the comparisons of a report, names of places."""

from __future__ import annotations

import dataclasses

from .content import Comparison, ReportContent, Scenario


@dataclasses.dataclass(frozen=True)
class Limit:
    """One limit: a short statement and an explanation."""

    statement: str
    explanation: str


def list_comparisons(content: ReportContent) -> list[tuple[Scenario, Comparison]]:
    return [(scenario, comparison) for scenario in content.scenarios for comparison in scenario.comparisons]


def name_place(scenario: Scenario, comparison: Comparison) -> str:
    return f"{scenario.title}, {comparison.label}"


def shorten(names: list[str], most: int = 6) -> list[str]:
    return names if len(names) <= most else [*names[:most], f"{len(names) - most} more"]
