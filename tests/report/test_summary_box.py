"""The summary box, the state table, and the figures of masks that models share."""

from __future__ import annotations

import dataclasses
import re

import pytest
from sample_report import sample

from expunge.core.outcome import Extent
from expunge.report import (
    Comparison,
    InfluenceState,
    ModelResult,
    ReportContent,
    ReportScore,
    RequestSummary,
    Scenario,
    render_report,
)
from expunge.report.figures import draw_masks
from expunge.report.limits import list_limits
from expunge.report.summary.box import build_summary, describe_untouched

PARTLY = Extent("partly rewritten", 4, 2, 200, 3)
STATE = InfluenceState(("weights",), ("rewind_checkpoint",), ("mask", "batch_norm"))


def plain(html: str) -> str:
    """The text of a part of the page in one line."""
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def box_of(content: ReportContent) -> str:
    page = render_report(content)
    start = page.index('<section id="summary"')
    return plain(page[start : page.index("</section>", start)])


def one_model(**fields: object) -> ReportContent:
    retrain = ModelResult("Retrain", "retrained", {"UA": ReportScore("UA", 5.0, "%")}, guarantee="exact")
    ft = ModelResult(
        "FT", "unlearned", {"UA": ReportScore("UA", 2.0, "%")}, guarantee="empirical", state=STATE,
        file="model.safetensors", file_hash="f" * 64, hashes={"weights": "e" * 64},
    )  # fmt: skip
    models = (retrain, dataclasses.replace(ft, **fields))
    request = RequestSummary(300, {"by": "random", "fraction": 0.05, "seed": 0})
    scenario = Scenario("5 % random records", request, (Comparison("dense", models, {"UA": 1.25}),))
    return ReportContent("t", (scenario,), "fashion-mnist", "small-cnn", created="2026-03-01")


def test_the_box_has_every_fact_a_reader_looks_for_first() -> None:
    text = box_of(one_model())
    for part in (
        "5 % random records : 300 records (5 % of the training records, drawn at random, seed 0)",
        "Date of the run 2026-03-01",
        "Small CNN, Fashion-MNIST",
        "FT on the original “dense”",
        "empirical : measured only",
        f"model.safetensors SHA-256 {'f' * 64} hash of the weights {'e' * 64}",
        "UA −3.00 points (noise floor 1.25)",
        "Unchanged since training on the forgotten records mask and batch norm",
        "that the records were forgotten (weights cannot prove it)",
        f"All {len(list_limits(one_model()))} limits",
    ):
        assert part in text, part


def test_what_was_not_recorded_is_a_dash_with_a_reason() -> None:
    bare = ReportContent(
        "t", (Scenario("s", RequestSummary(1), (Comparison("c", (ModelResult("FT", "unlearned"),)),)),)
    )
    text = box_of(bare)
    for part in ("Date of the run – not recorded", "Model and data – not recorded", "Guarantee – none recorded",
                 "Model file – not recorded", "Largest gaps to Retrain – not measured",
                 "Unchanged since training on the forgotten records not recorded"):  # fmt: skip
        assert part in text, part


def test_a_gap_within_the_floor_is_marked_and_one_seed_is_said() -> None:
    near = {"UA": ReportScore("UA", 5.5, "%")}
    assert "UA ≈ +0.50 points (noise floor 1.25)" in box_of(one_model(scores=near))
    content = one_model()
    scenario = content.scenarios[0]
    comparison = dataclasses.replace(scenario.comparisons[0], floors={})
    single = dataclasses.replace(content, scenarios=(dataclasses.replace(scenario, comparisons=(comparison,)),))
    assert "UA −3.00 points (no noise floor: one seed)" in box_of(single)


def test_several_models_are_rows_with_request_and_original() -> None:
    summary = build_summary(sample(), 12)
    assert summary["single"] is None
    assert len(summary["rows"]) == 16  # two requests, two originals, three methods and the original
    assert (summary["several_requests"], summary["several_originals"]) == (True, True)
    row = next(row for row in summary["rows"] if row["request"] == "Class 3" and row["method"] == "FT")
    assert row["original"] == "dense"
    assert row["gaps"][0]["name"] == "UA"  # 31.5 % instead of 100 %
    assert row["seeds"] == 3
    page = render_report(sample())
    assert page.count('data-label="Guarantee"') == 16


def test_the_provenance_has_the_file_and_its_hash_in_full() -> None:
    page = render_report(one_model())
    provenance = page[page.index('id="provenance"') :]
    assert f"name model.safetensors sha256 {'f' * 64}" in plain(provenance)


def test_a_retrained_model_alone_is_the_result() -> None:
    models = (ModelResult("Original", "original"), ModelResult("Retrain", "retrained", guarantee="exact"))
    content = ReportContent("t", (Scenario("s", RequestSummary(1), (Comparison("dense", models),)),))
    text = box_of(content)
    assert "Retrain on the original “dense” Guarantee exact" in text
    assert "– it is the reference" in text


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (None, "not recorded"),
        (InfluenceState(), "not recorded"),
        (InfluenceState(("weights",)), "no state as a whole"),  # a file of an earlier version
        (InfluenceState(("weights", "mask"), recomputed=("mask",)),
         "no state as a whole; weights: changed from what was trained on D_f"),
        (InfluenceState(("weights",), carried=("mask",), recomputed=()),
         "mask; weights: changed from what was trained on D_f"),
        (InfluenceState(("weights",), recomputed=("weights",)), "nothing: all recorded state was made without them"),
        (STATE, "mask and batch norm"),
        (InfluenceState(("weights",), carried=("mask",), extents={"weights": PARTLY}),
         "mask; partly: weights (2 of 4 tensors, 1.5 % of the entries changed)"),
    ],
)  # fmt: skip
def test_what_was_not_touched_is_said_in_words(state: InfluenceState | None, text: str) -> None:
    assert describe_untouched(state) == text


def test_state_that_was_partly_rewritten_has_its_numbers_and_nothing_about_it_is_green() -> None:
    extent = {"tensors": 4, "changed_tensors": 2, "entries": 3610, "changed_entries": 451, "status": "partly rewritten"}
    whole = {"tensors": 1, "changed_tensors": 1, "entries": 1, "changed_entries": 1, "status": "rewritten"}
    body = {"rewrote": ["weights", "batch_norm"], "dropped": ["pruning_scores"],
            "extent": {"weights": extent, "batch_norm": whole}}  # fmt: skip
    page = render_report(one_model(state=InfluenceState.from_json(body)))
    numbers = "2 of 4 tensors, 12.5 % of the entries changed"
    assert f'<td class="dependent">partly rewritten ({numbers})</td>' in page
    assert f"Unchanged since training on the forgotten records partly: weights ({numbers})" in plain(page)
    assert '<td class="changed">rewritten</td>' in page
    assert '<td class="changed">dropped</td>' in page
    assert not re.search(r"\.changed|--good|\.good", page)  # no colour of its own


def test_a_guarantee_relative_to_a_declared_start_names_it() -> None:
    start = {"file": "start.safetensors", "hash": "ab12"}
    text = box_of(one_model(guarantee="exact", relative_to=start))
    assert "exact relative to the declared start start.safetensors (SHA-256 ab12)" in text
    body = {"method": {"name": "Retrain", "guarantee": "exact", "relative_to": start}}
    assert ModelResult.from_outcome(body).relative_to == start
    assert ModelResult.from_outcome({"method": {"relative_to": None}}).relative_to == {}


def masked(label: str, density: float, mask: str | None, role: str = "unlearned") -> ModelResult:
    return ModelResult(label, role, density={"a.weight": density}, hashes={} if mask is None else {"mask": mask})


def drawn(*scenarios: Scenario) -> list[tuple[list[tuple[str, str]], list[tuple[str, str]]]]:
    found = draw_masks(ReportContent("t", scenarios))
    return [([(m["label"], m["note"]) for m in one["drawn"]], [(m["label"], m["id"]) for m in one["shared"]])
            for one in found]  # fmt: skip


def test_equal_masks_share_a_figure_within_a_comparison_and_across_requests() -> None:
    models = (masked("Original", 0.5, None, "original"), masked("FT", 0.5, "m"), masked("GA", 0.5, "m"))
    first = Scenario("one", RequestSummary(1), (Comparison("50 % sparse", models),))
    second = Scenario("two", RequestSummary(2), (Comparison("50 % sparse", models),))
    assert drawn(first, second) == [
        ([("50 % sparse", "all models")], []),
        ([], [("50 % sparse, all models", "s0")]),
    ]
    page = render_report(ReportContent("t", (first, second)))
    assert page.count("Mask density by layer: ") == 1
    assert 'the mask is drawn under <a href="#s0">one</a>' in page


def test_different_masks_have_their_own_figures() -> None:
    models = (
        masked("FT", 0.5, "m"),
        masked("GA", 0.5, "other"),
        masked("l1", 0.25, None),
        ModelResult("x", "unlearned"),
    )
    comparison = Comparison("50 % sparse", models)
    ((figures, shared),) = drawn(Scenario("one", RequestSummary(1), (comparison,)))
    assert figures == [("50 % sparse", "FT"), ("50 % sparse", "GA"), ("50 % sparse", "l1")]
    assert shared == []


def test_a_column_has_one_direction_and_the_mirror_of_ra_is_not_in_the_table() -> None:
    scores = {name: ReportScore(name, 1.0, "%") for name in ("UA", "100-RA", "RA", "TA")}
    page = render_report(one_model(scores=scores))
    head = page[page.index('<table class="scores">') : page.index("</thead>", page.index('<table class="scores">'))]
    assert head.count("→ Retrain") == 3
    assert "100-RA" not in head
    assert "100-RA" in page


def test_the_number_of_records_is_said_once() -> None:
    content = one_model()
    scenario = dataclasses.replace(content.scenarios[0], title="300 listed records", request=RequestSummary(300))
    text = box_of(dataclasses.replace(content, scenarios=(scenario,)))
    assert "300 listed records (record ids given explicitly)" in text
    assert "300 records" not in text


def with_original(ua: float, floors: dict[str, float], *methods: ModelResult) -> ReportContent:
    original = ModelResult("Original", "original", {"UA": ReportScore("UA", ua, "%")}, hashes={"weights": "a" * 64})
    content = one_model()
    scenario = content.scenarios[0]
    models = (original, *scenario.comparisons[0].models, *methods)
    return dataclasses.replace(
        content, scenarios=(dataclasses.replace(scenario, comparisons=(Comparison("dense", models, floors),)),)
    )


def test_the_box_has_the_gaps_of_the_original_and_whether_a_method_is_nearer() -> None:
    text = box_of(with_original(0.0, {"UA": 1.25}))
    assert "Those of the original (before) UA −5.00 points (noise floor 1.25)" in text
    assert "mean 3.00 points, nearer than the original (5.00)" in text
    ga = ModelResult("GA", "unlearned", {"UA": ReportScore("UA", 20.0, "%")}, guarantee="empirical")
    text = box_of(with_original(0.0, {"UA": 1.25}, ga))
    assert (
        "Original (before) – UA −5.00 points (noise floor 1.25) all of it: it was trained on them aaaaaaaaaaaa" in text
    )
    assert "mean 15.00 points, farther than the original (5.00)" in text


@pytest.mark.parametrize(
    ("ua", "floors", "words"),
    [
        (2.0, {}, "mean 3.00 points, as near as the original (3.00)"),
        (3.0, {}, "mean 3.00 points, farther than the original (2.00); without a noise floor, this may be chance"),
        (3.0, {"UA": 1.25}, "mean 3.00 points, as near as the original within noise (2.00)"),
    ],
)
def test_a_method_that_is_as_near_as_the_original_is_not_called_nearer(
    ua: float, floors: dict[str, float], words: str
) -> None:
    text = box_of(with_original(ua, floors))
    assert words in text
    assert ("may be chance" in text) == ("may be chance" in words)


def test_the_table_of_state_says_what_was_not_made_without_the_forgotten_records() -> None:
    body = {"rewrote": ["weights", "batch_norm"], "recomputed": ["batch_norm"]}
    page = render_report(one_model(state=InfluenceState.from_json(body)))
    assert '<td class="changed">rewritten<small>changed from what was trained on D_f</small></td>' in page
    assert '<td class="changed">rewritten</td>' in page
