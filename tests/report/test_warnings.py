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
from expunge.report.summary.warnings import COLLAPSED, ORIGINAL_NEAR, list_warnings


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
        ({"RA": 99.0, "TA": 90.0}, {"RA": 99.0, "TA": 79.9}, 0.0, True),
        ({"RA": 99.0, "TA": 90.0}, {"RA": 99.0, "TA": 80.0}, 0.0, False),
        ({"RA": 99.0, "TA": 90.0}, {"RA": 12.0, "TA": 90.0}, 0.0, True),
        ({"RA": 99.0, "TA": 90.0}, {"RA": 99.0, "TA": 78.5}, 6.0, False),  # 11.5 points, but the floor is 6
        ({"RA": 99.0, "TA": 90.0}, {"RA": 99.0, "TA": 77.5}, 6.0, True),
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


@pytest.mark.parametrize(("half_width", "warned"), [(5.0, True), (15.0, False), (None, True)])
def test_with_one_seed_few_records_alone_give_no_warning(half_width: float | None, warned: bool) -> None:
    """20 points: more than 10, and more than twice the mean of the half-widths if they are 5, not if they are 15."""

    def score(value: float) -> dict[str, ReportScore]:
        interval = None if half_width is None else (value - half_width, value + half_width)
        return {"TA": ReportScore("TA", value, "%", interval=interval)}

    models = (ModelResult("Original", "original", score(80.0)), ModelResult("Retrain", "retrained", score(60.0)))
    found = list_warnings(ReportContent("t", (Scenario("s", RequestSummary(9), (Comparison("dense", models),)),)))
    assert len(found) == warned


def test_recorded_warnings_of_a_kind_are_one_with_their_places_and_replace_the_rule() -> None:
    low, lower = (ReportWarning(f"Retrain has {n} %.", code=COLLAPSED) for n in (10, 9))
    report = content({"RA": 99.0}, {"RA": 10.0}, warnings=(low, lower))
    (scenario,) = report.scenarios
    other = Comparison("90 % sparse", (ModelResult("FT", "unlearned", warnings=(low,)),))
    both = Scenario("s", scenario.request, (*scenario.comparisons, other))
    (found,) = list_warnings(ReportContent("t", (both,)))
    assert found.code == COLLAPSED
    assert found.message == "Retrain is far below the original: it may not have learned the task."
    assert found.explanation.endswith("Retrain has 10 % (s, dense and s, 90 % sparse). Retrain has 9 % (s, dense).")
    page = render_report(ReportContent("t", (both,)))
    assert page.count("Retrain has 10 %") == 1


def test_a_warning_of_an_unknown_kind_is_its_message_beside_the_rule() -> None:
    (kept, rule) = list_warnings(content({"RA": 99.0}, {"RA": 10.0}, warnings=(ReportWarning("odd labels", "See x."),)))
    assert (kept.message, kept.explanation) == ("odd labels", "See x.")
    assert rule.code == COLLAPSED
    assert "<strong>Odd labels</strong>" in render_report(content({}, {}, warnings=(ReportWarning("odd labels"),)))


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


@pytest.mark.parametrize(
    ("original", "retrain", "half_width", "floor", "warned"),
    [
        (0.0, 0.0, 1.0, None, True),
        (2.0, 5.0, 4.0, None, True),
        (2.0, 5.0, 2.0, None, False),
        (2.0, 5.0, 4.0, 1.0, False),  # the noise floor is known, and smaller than the interval
        (2.0, 5.0, 2.0, 4.0, True),
        (2.0, 2.0, None, None, False),  # nothing says how large the noise is
    ],
)
def test_an_original_as_near_to_retrain_as_noise_is_in_the_banner(
    original: float, retrain: float, half_width: float | None, floor: float | None, warned: bool
) -> None:
    def model(label: str, role: str, value: float) -> ModelResult:
        ends = None if half_width is None else (value - half_width, value + half_width)
        return ModelResult(label, role, {"UA": ReportScore("UA", value, "%", interval=ends)})

    models = (model("Original", "original", original), model("Retrain", "retrained", retrain),
              model("FT", "unlearned", 3.0))  # fmt: skip
    floors = {} if floor is None else {"UA": floor}
    report = ReportContent("t", (Scenario("s", RequestSummary(40), (Comparison("dense", models, floors),)),))
    found = list_warnings(report)
    assert [warning.code for warning in found] == [ORIGINAL_NEAR] * warned
    if warned:
        assert "s, dense: the gaps of the original are within the" in found[0].explanation


@pytest.mark.parametrize(("attack", "warned"), [(52.0, True), (90.0, False)])
def test_a_score_without_an_interval_counts_by_the_size_of_the_forget_set(attack: float, warned: bool) -> None:
    def model(label: str, role: str, attacked: float) -> ModelResult:
        scores = {"UA": ReportScore("UA", 5.0, "%", interval=(1.0, 9.0)),
                  "MIA-Efficacy": ReportScore("MIA-Efficacy", attacked, "%")}  # fmt: skip
        return ModelResult(label, role, scores)

    models = (model("Original", "original", attack), model("Retrain", "retrained", 50.0),
              model("FT", "unlearned", 50.0))  # fmt: skip
    report = ReportContent("t", (Scenario("s", RequestSummary(40), (Comparison("dense", models),)),))
    assert [warning.code for warning in list_warnings(report)] == [ORIGINAL_NEAR] * warned
