"""Gaps beside their noise floor in the report: both signs, which floor counts, and the threshold itself."""

from __future__ import annotations

import pytest

from expunge.report import Comparison, InfluenceState, ModelResult, ReportContent, ReportScore, RequestSummary, Scenario
from expunge.report.limits import list_limits
from expunge.report.view import build_scenario_view


def model(label: str, role: str = "unlearned", **scores: dict[str, float]) -> ModelResult:
    made = {name: ReportScore(name, unit="%", **values) for name, values in scores.items()}
    return ModelResult(label, role, made, state=InfluenceState())


def content(*models: ModelResult, floors: dict[str, float] | None = None) -> ReportContent:
    comparison = Comparison("dense", models, floors or {})
    return ReportContent("t", (Scenario("s", RequestSummary(1000, {"by": "ids"}), (comparison,)),))


def statements(body: ReportContent) -> list[str]:
    return [limit.statement for limit in list_limits(body)]


RETRAIN = model("Retrain", "retrained", UA={"value": 5.0, "noise_floor": 0.5})


@pytest.mark.parametrize(
    ("value", "inside"), [(4.5, True), (4.49, False), (0.0, False), (5.5, True), (5.51, False), (5.0, True)]
)
def test_a_gap_of_either_sign_is_compared_by_its_size(value: float, inside: bool) -> None:
    body = content(model("FT", UA={"value": value, "reference": 5.0}), RETRAIN)
    assert f"{int(inside)} of 1 gap lie within the noise floor." in statements(body)
    rows = build_scenario_view(body.scenarios[0], 1)["comparisons"][0]["rows"]
    (cell,) = next(row["cells"] for row in rows if row["label"] == "FT")
    assert cell.within is inside


def test_the_floor_of_the_comparison_comes_before_that_of_the_reference() -> None:
    """The floor that the comparison gives is over its own runs; the reference's score may be over fewer."""
    near = model("FT", UA={"value": 6.0, "reference": 5.0})
    wider, narrower = content(near, RETRAIN, floors={"UA": 1.5}), content(near, RETRAIN, floors={"UA": 0.25})
    assert wider.scenarios[0].comparisons[0].noise_floors() == {"UA": 1.5}
    assert narrower.scenarios[0].comparisons[0].noise_floors() == {"UA": 0.25}
    assert "1 of 1 gap lie within the noise floor." in statements(wider)
    assert "0 of 1 gap lie within the noise floor." in statements(content(near, RETRAIN))
    view = build_scenario_view(wider.scenarios[0], 1)["comparisons"][0]
    assert view["floor"] == ["1.50"]


def test_damage_is_a_fall_of_ra_not_a_rise() -> None:
    reference = model("Retrain", "retrained", RA={"value": 90.0, "noise_floor": 0.1})
    statement = "Part of the measured forgetting may be general damage."
    assert statement in statements(content(model("FT", RA={"value": 87.0, "reference": 90.0}), reference))
    assert statement not in statements(content(model("FT", RA={"value": 93.0, "reference": 90.0}), reference))
    assert statement not in statements(content(model("FT", RA={"value": 88.0, "reference": 90.0}), reference))
