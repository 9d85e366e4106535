"""Gaps to Retrain: their order, the noise floor beside them, and the figure."""

from __future__ import annotations

import re

import pytest

from expunge.report import Comparison, ModelResult, ReportContent, ReportScore, RequestSummary, Scenario, render_report
from expunge.report.figures import choose_gap_axis_end, draw_gap_panels
from expunge.report.summary.gaps import find_largest_gaps, list_gaps, rank_models, select_gap_names


def model(label: str, role: str = "unlearned", **values: float) -> ModelResult:
    """A model with scores by name; AUC is a fraction, all others are in %."""
    names = {name.replace("_", "-"): value for name, value in values.items()}
    return ModelResult(label, role, {n: ReportScore(n, v, "" if n == "AUC" else "%") for n, v in names.items()})


RETRAIN = model("Retrain", "retrained", UA=5.0, RA=99.0, AUC=0.5)
NEAR = model("Near", UA=5.5, RA=98.5, AUC=0.51)
FAR = model("Far", UA=2.0, RA=99.0, AUC=0.9)
FLOORS = {"UA": 1.0, "RA": 0.1, "AUC": 0.02}


def scenario(*models: ModelResult, floors: dict[str, float] | None = None) -> Scenario:
    return Scenario("s", RequestSummary(300), (Comparison("dense", models, FLOORS if floors is None else floors),))


def test_gaps_are_signed_differences_in_points_beside_their_floors() -> None:
    (comparison,) = scenario(RETRAIN, FAR).comparisons
    gaps = {gap.name: gap for gap in list_gaps(comparison, FAR)}
    assert gaps["UA"].points == pytest.approx(-3.0)
    assert gaps["AUC"].points == pytest.approx(40.0)
    assert gaps["AUC"].floor_points == pytest.approx(2.0)
    assert (gaps["AUC"].text, gaps["UA"].text) == ("+0.400", "−3.00")
    assert [gaps[name].is_within for name in ("UA", "RA", "AUC")] == [False, True, False]


def test_the_largest_gaps_are_those_beyond_the_floor_then_by_size() -> None:
    (comparison,) = scenario(RETRAIN, NEAR).comparisons
    # 1 point of AUC and 0.5 of UA are noise; 0.5 of RA is five floors
    assert [gap.name for gap in find_largest_gaps(list_gaps(comparison, NEAR), 3)] == ["RA", "AUC", "UA"]
    (without,) = scenario(RETRAIN, NEAR, floors={}).comparisons
    assert [gap.name for gap in find_largest_gaps(list_gaps(without, NEAR), 1)] == ["AUC"]
    assert not any(gap.is_within for gap in list_gaps(without, NEAR))


def test_models_are_ranked_worst_first_whatever_their_order() -> None:
    for order in ((NEAR, FAR), (FAR, NEAR)):
        assert [m.label for _, m, _ in rank_models(scenario(RETRAIN, *order))] == ["Far", "Near"]


def test_only_scores_that_should_be_those_of_retrain_are_compared() -> None:
    scores = {"MIA-Privacy": ReportScore("MIA-Privacy", 50.0, "%", "lower"), "100-RA": ReportScore("100-RA", 1.0, "%"),
              "Disparity average": ReportScore("Disparity average", 1.0, "points"), "UA": ReportScore("UA", 1.0, "%"),
              "odd": ReportScore("odd", 1.0, "%")}  # fmt: skip
    assert select_gap_names([ModelResult("FT", "unlearned", scores)]) == ["UA"]
    assert select_gap_names([]) == []


@pytest.mark.parametrize(
    ("largest", "end"),
    [(0.0, 1), (0.3, 1), (1.0, 1), (1.01, 2), (2.0, 2), (4.9, 5), (5.1, 10), (50.0, 50), (68.0, 100), (100.0, 100)],
)
def test_the_axis_ends_at_a_round_number_of_points(largest: float, end: float) -> None:
    assert choose_gap_axis_end(largest) == end


def test_dots_stand_at_the_gap_on_the_band_of_the_floor() -> None:
    """The axis of UA is from -5 to +5 points, between 146 and 288 in the picture: 14.2 a point, 217 is zero."""
    (ua, *_) = draw_gap_panels(scenario(RETRAIN, NEAR, FAR), "x")
    text = str(ua["figure"])
    assert ua["name"] == "UA"
    assert "UA: gaps to Retrain in percentage points</title>" in text
    dots = re.findall(r'<title>(\w+) [^<]*</title><path d="M([\d.]+) [^"]*" class="fill-(\w+) stroke-ink"', text)
    assert dots == [("Far", f"{217 - 3 * 14.2:.1f}", "forget"), ("Near", f"{217 + 0.5 * 14.2:.1f}", "none")]
    bands = re.findall(r'<path d="M([\d.]+) [\d.]+L([\d.]+) [^"]*" class="fill-line', text)
    assert bands == [(f"{217 - 14.2:.1f}", f"{217 + 14.2:.1f}")] * 2
    words = "Far −3.00 points, beyond the noise floor of 1.00; Near +0.50 points, within the noise floor of 1.00."
    assert f">{words}</desc>" in text
    assert re.findall(r"<text[^>]*>([^<]*)</text>", text)[3:] == ["Far", "Near", "−3.00", "+0.50"]


def test_a_single_model_has_one_panel_with_its_largest_gap_first() -> None:
    (panel,) = draw_gap_panels(scenario(RETRAIN, FAR), "x")
    text = str(panel["figure"])
    assert panel["name"] == "Far"
    assert text.index("AUC +40.00") < text.index("UA −3.00") < text.index("RA 0.00")


def test_without_a_reference_there_is_no_figure() -> None:
    assert draw_gap_panels(scenario(NEAR, FAR), "x") == []
    page = render_report(ReportContent("t", (scenario(NEAR, FAR),)))
    assert "Gaps to Retrain" not in page


def test_the_figure_is_before_the_table_and_the_glossary_after_the_results() -> None:
    page = render_report(ReportContent("t", (scenario(RETRAIN, NEAR, FAR),)))
    places = [page.index(f'id="{name}"') for name in ("summary", "s0", "s0-gaps", "s0-scores", "limits", "reading")]
    assert places == sorted(places)


def test_no_noise_floor_is_said_instead_of_an_empty_band() -> None:
    page = render_report(ReportContent("t", (scenario(RETRAIN, NEAR, FAR, floors={}),)))
    assert "There is no noise floor, because the reference was trained with one seed." in page
    assert 'class="fill-line' not in page
