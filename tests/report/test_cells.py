"""Every number of a cell of the report, computed by hand: value, gap, interval, spread, fraction of Retrain's cost."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from expunge.report import Comparison, InfluenceState, ModelResult, ReportContent, ReportScore, RequestSummary, Scenario
from expunge.report.figures import draw_masks
from expunge.report.html import render_report
from expunge.report.limits import list_limits
from expunge.report.view import build_scenario_view, collect_definitions

MINUS = "\N{MINUS SIGN}"


def result(label: str, role: str, scores: dict[str, ReportScore], **more: Any) -> ModelResult:
    return ModelResult(label, role, scores, **more)


RETRAIN = result(
    "Retrain",
    "retrained",
    {
        "UA": ReportScore("UA", 5.0, unit="%", spread=0.75, noise_floor=0.5, seeds=3),
        "AUC": ReportScore("AUC", 0.5, unit="", noise_floor=0.01, seeds=3),
        "RTE": ReportScore("RTE", 8.0, unit="s"),
    },
    passes=40.0,
    seconds=9.0,
    class_accuracy=(90.0, 80.0, None),
)
FT = result(
    "FT",
    "unlearned",
    {
        "UA": ReportScore("UA", 3.25, unit="%", spread=0.1),
        "AUC": ReportScore("AUC", 0.625, unit="", interval=(0.55, 0.7), reference=0.5),
        "RTE": ReportScore("RTE", 6.0, unit="s"),
    },
    passes=0.2,
    seconds=1.0,
    class_accuracy=(70.0, 85.0, 10.0),
)
ORIGINAL = result(
    "Original",
    "original",
    {"UA": ReportScore("UA", 0.0, unit="%", interval=(0.0, 1.25)), "AUC": ReportScore("AUC", None, missing="no pool")},
    class_accuracy=(90.0, 80.05, None),
)


def view() -> dict[str, Any]:
    request = RequestSummary(50, {"by": "class", "index": 1}, forgotten_class=1)
    comparison = Comparison("dense", (ORIGINAL, FT, RETRAIN))
    scenario = Scenario("s", request, (comparison,), class_names=("a", "b", "c"))
    (found,) = build_scenario_view(scenario, 1)["comparisons"]
    return found


def cells(label: str) -> list[Any]:
    return next(row["cells"] for row in view()["rows"] if row["label"] == label)


def test_rows_are_the_original_the_reference_and_the_others():
    assert [row["label"] for row in view()["rows"]] == ["Original", "Retrain", "FT"]
    assert view()["seeds"] == 3


def test_a_gap_is_the_value_minus_that_of_the_reference():
    ua, auc = cells("FT")
    assert (ua.value, ua.gap, ua.spread, ua.interval) == ("3.25", f"{MINUS}1.75", "0.10", "")
    assert (auc.value, auc.gap, auc.interval) == ("0.625", "+0.125", "0.550 to 0.700")
    assert (ua.within, auc.within) == (False, False)


def test_the_reference_has_no_gap_and_the_original_has_one():
    ua, _ = cells("Retrain")
    assert (ua.value, ua.gap, ua.spread) == ("5.00", "", "0.75")
    ua, auc = cells("Original")
    assert (ua.value, ua.gap, ua.interval) == ("0.00", f"{MINUS}5.00", "0.0 to 1.2")
    assert auc.reason == "no pool"


def test_floors_stand_under_their_columns():
    assert view()["floor"] == ["0.50", "0.010"]


def test_costs_are_fractions_of_those_of_retrain():
    """Measured costs (RTE) come before the recorded ones; a fraction below one percent is not printed as 0 %."""
    costs = {row["label"]: row["cost"] for row in view()["rows"]}
    assert [(cell.value, cell.fraction) for cell in costs["FT"]] == [("0.20", "< 1 %"), ("6.0", "75 %")]
    assert [(cell.value, cell.fraction) for cell in costs["Retrain"]] == [("40.0", ""), ("8.0", "")]
    assert [cell.reason for cell in costs["Original"]] == ["no method", "no method"]


def test_steps_stand_under_the_passes():
    """Counted steps, a mean over seeds, none of them (a number, too), and unknown ones."""
    for count, text in ((4, "4 steps"), (1, "1 step"), (2.5, "2.5 steps"), (0, "0 steps"), (None, "")):
        model = dataclasses.replace(FT, optimiser_steps=count)
        comparison = Comparison("dense", (ORIGINAL, model, RETRAIN))
        scenario = Scenario("s", RequestSummary(50), (comparison,), class_names=("a", "b", "c"))
        (found,) = build_scenario_view(scenario, 1)["comparisons"]
        assert [cell.steps for cell in found["rows"][2]["cost"]] == [text, ""]
        page = render_report(ReportContent("t", (scenario,)))
        assert ("under the passes the steps" in page) == (count is not None)
        assert not text or f">{text}<" in page


def test_classes_are_coloured_by_their_gap():
    """Colour: half of the gap over 20 points, at most 0.5; the side is the sign."""
    table = view()["classes"]
    assert table["models"] == ["Original", "FT", "Retrain"]
    assert [row["forgotten"] for row in table["rows"]] == [False, True, False]
    first, second, third = (row["cells"][1] for row in table["rows"])
    assert (first["value"], first["side"], first["alpha"]) == ("70.0", "below", "0.50")
    assert first["gap"] == f"{MINUS}20.00 points against Retrain"
    assert (second["side"], second["alpha"], second["gap"]) == ("above", "0.12", "+5.00 points against Retrain")
    assert (third["value"], third["side"], third["gap"]) == ("10.0", "", "")
    reference = table["rows"][0]["cells"][2]
    assert (reference["value"], reference["side"], reference["gap"]) == ("90.0", "", "")
    assert table["rows"][1]["cells"][0]["side"] == ""  # 0.05 points have no colour


def content() -> ReportContent:
    request = RequestSummary(50, {"by": "ids"})
    return ReportContent(
        "t", (Scenario("s", request, (Comparison("dense", (ORIGINAL, FT, RETRAIN)),), ("a", "b", "c")),)
    )


def test_each_score_is_defined_once():
    assert [one["name"] for one in collect_definitions(content())] == ["UA", "AUC"]


@pytest.mark.parametrize(("records", "points"), [(50, "2.00"), (199, "0.50"), (200, None), (0, None)])
def test_the_weight_of_one_record(records: int, points: str | None):
    scenario = Scenario(
        "s", RequestSummary(records, {"by": "ids"}), (Comparison("dense", (FT, RETRAIN)),), tuple("abc")
    )
    limits = {limit.statement: limit.explanation for limit in list_limits(ReportContent("t", (scenario,)))}
    text = limits.get("The forget set is small.")
    assert (text is None) if points is None else (text is not None and f"by {points} points (s)" in text)


def test_masks_are_drawn_once_with_the_models_that_have_them():
    def masked(label: str, role: str, mask: str, density: float) -> ModelResult:
        return result(label, role, {}, density={"conv.weight": density} if mask else {}, hashes={"mask": mask})

    def labels(*models: ModelResult) -> list[str]:
        scenario = Scenario("s", RequestSummary(50), (Comparison("sparse", models),))
        return [one["note"] for one in draw_masks(ReportContent("t", (scenario,)))[0]["drawn"]]

    original, retrained = masked("Original", "original", "a", 0.4), masked("Retrain", "retrained", "b", 0.4)
    same, dense = masked("FT", "unlearned", "a", 0.4), masked("GA", "unlearned", "", 1.0)
    assert labels(original, same, retrained) == ["Original and FT", "Retrain"]
    assert labels(original, same) == ["all models"]
    assert labels(original, same, dense) == ["Original and FT"]
    assert labels(dense) == []


def test_every_kind_of_state_has_a_row_and_every_model_a_cell():
    states = (
        InfluenceState(rewrote=("weights",), carried=("batch_norm",), meaning={"weights": "the parameters"}),
        InfluenceState(rewrote=("weights", "batch_norm"), dropped=("rewind_checkpoint",)),
    )
    models = (
        result("FT", "unlearned", {}, state=states[0]),
        result("Retrain", "retrained", {}, state=states[1]),
    )
    scenario = Scenario("s", RequestSummary(50), (Comparison("dense", models),))
    table = build_scenario_view(scenario, 1)["comparisons"][0]["state"]
    assert table["models"] == ["FT", "Retrain"]
    assert [row["name"] for row in table["rows"]] == ["weights", "batch norm", "rewind checkpoint"]
    assert table["rows"][0]["meaning"] == "the parameters"
    texts = [[cell["text"] for cell in row["cells"]] for row in table["rows"]]
    assert texts[0][0] == texts[0][1] == texts[1][1]  # rewritten
    assert len({texts[0][0], texts[1][0], texts[2][0], texts[2][1]}) == 4  # rewritten, unchanged, not present, dropped
