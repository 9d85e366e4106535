"""The red banner: recorded warnings, and the rule about a reference that did not learn."""

from __future__ import annotations

import pytest

from expunge.report import (
    Comparison,
    ModelResult,
    ReportContent,
    ReportScore,
    ReportWarning,
    RequestSummary,
    Scenario,
    render_report,
)
from expunge.report.summary.warnings import COLLAPSED, list_warnings


def content(
    original: dict[str, float], retrain: dict[str, float], floor: float = 0.0, **fields: object
) -> ReportContent:
    def model(label: str, role: str, values: dict[str, float]) -> ModelResult:
        return ModelResult(label, role, {name: ReportScore(name, value, "%") for name, value in values.items()})

    models = (model("Original", "original", original), model("Retrain", "retrained", retrain),
              ModelResult("FT", "unlearned", **fields))  # fmt: skip
    floors = {"RA": floor, "TA": floor} if floor else {}
    return ReportContent("t", (Scenario("s", RequestSummary(300), (Comparison("dense", models, floors),)),))


@pytest.mark.parametrize(
    ("original", "retrain", "floor", "warned"),
    [
        ({"RA": 99.0, "TA": 90.0}, {"RA": 99.0, "TA": 90.0}, 0.0, False),
        ({"RA": 99.0, "TA": 90.0}, {"RA": 99.0, "TA": 80.0}, 0.0, True),
        ({"RA": 99.0, "TA": 90.0}, {"RA": 99.0, "TA": 80.1}, 0.0, False),
        ({"RA": 99.0, "TA": 90.0}, {"RA": 12.0, "TA": 90.0}, 0.0, True),
        ({"RA": 99.0, "TA": 90.0}, {"RA": 99.0, "TA": 75.0}, 6.0, False),  # 15 points, but the floor is 6
        ({"RA": 99.0, "TA": 90.0}, {"RA": 99.0, "TA": 72.0}, 6.0, True),
        ({"RA": 12.0, "TA": 10.0}, {"RA": 99.0, "TA": 90.0}, 0.0, False),  # the original is the bad one
        ({"TA": 90.0}, {"RA": 10.0}, 0.0, False),
    ],
)
def test_a_reference_far_below_the_original_is_in_the_banner(
    original: dict[str, float], retrain: dict[str, float], floor: float, warned: bool
) -> None:
    report = content(original, retrain, floor)
    found = list_warnings(report)
    assert [warning.code for warning in found] == [COLLAPSED] * warned
    assert ('<section id="warnings"' in render_report(report)) == warned


def test_the_banner_is_the_first_thing_of_the_page_and_has_the_numbers() -> None:
    page = render_report(content({"RA": 99.0, "TA": 90.0}, {"RA": 11.25, "TA": 10.0}))
    assert page.index('id="warnings"') < page.index('id="summary"')
    assert "s, dense: RA 11.25 %, of the original 99.00 % and TA 10.00 %, of the original 90.00 %" in page


def test_recorded_warnings_are_shown_once_with_their_places_and_replace_the_rule() -> None:
    recorded = ReportWarning("The reference collapsed.", "It is at chance.", COLLAPSED)
    report = content({"RA": 99.0}, {"RA": 10.0}, warnings=(recorded,))
    (scenario,) = report.scenarios
    other = Comparison("90 % sparse", scenario.comparisons[0].models)
    both = Scenario("s", scenario.request, (*scenario.comparisons, other))
    (found,) = list_warnings(ReportContent("t", (both,)))
    assert found.message == "The reference collapsed."
    assert found.explanation == "It is at chance. Measured with: FT (s, dense) and FT (s, 90 % sparse)."
    (kept, rule) = list_warnings(content({"RA": 99.0}, {"RA": 10.0}, warnings=(ReportWarning("Declared only."),)))
    assert (kept.message, rule.code) == ("Declared only.", COLLAPSED)


@pytest.mark.parametrize(
    ("body", "warning"),
    [
        ("text", ReportWarning("text")),
        ({"message": "m", "hint": "h", "code": "c"}, ReportWarning("m", "h", "c")),
        ({"message": "m", "explanation": "e"}, ReportWarning("m", "e")),
        ({"message": ["<b>"]}, ReportWarning("['<b>']")),
        (None, ReportWarning("None")),
    ],
)
def test_warnings_are_read_from_json(body: object, warning: ReportWarning) -> None:
    assert ReportWarning.from_json(body) == warning


def test_a_hostile_warning_is_escaped() -> None:
    page = render_report(content({}, {}, warnings=(ReportWarning("<script>1</script>", "<img src=x>"),)))
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "<img" not in page
