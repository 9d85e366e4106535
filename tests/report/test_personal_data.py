"""What identifies persons (ids, subjects, values of columns) is in a report only if it was asked for."""

from __future__ import annotations

import re

import pytest

from expunge.report import Comparison, ModelResult, ReportContent, RequestSummary, Scenario, render_report
from expunge.report.content import leave_out_names
from expunge.report.formatting import describe_selection, describe_title

SELECTIONS = [
    {"by": "ids", "on_missing": "skip", "skipped": {"unknown": ["SECRET-1"], "forgotten before": ["SECRET-2"]}},
    {"by": "subjects", "subjects": ["SECRET-1", "SECRET-2"], "skipped": {"unknown": ["SECRET-3"]}},
    {"by": "column", "column": "patient", "value": "SECRET-1"},
    {"by": "made", "names": ["SECRET-1"], "within": {"a": ["SECRET-2"]}},
]  # fmt: skip


def render(selection: dict[str, object], **options: object) -> str:
    body = {"record_ids": [f"SECRET-{i:03d}" for i in range(40)], "records": 40, "selection": selection, "hash": "ab"}
    request = RequestSummary.from_json(body, **options)
    comparison = Comparison("dense", (ModelResult("FT", "unlearned"),))
    return render_report(ReportContent("t", (Scenario("s", request, (comparison,)),)))


@pytest.mark.parametrize("selection", SELECTIONS, ids=lambda selection: selection["by"])
def test_no_name_is_in_a_report_by_default(selection: dict[str, object]) -> None:
    page = render(selection)
    assert "SECRET" not in page
    assert "left out (personal data); the hash covers all 40" in page


@pytest.mark.parametrize("selection", SELECTIONS, ids=lambda selection: selection["by"])
def test_all_names_are_in_a_report_that_asks_for_them(selection: dict[str, object]) -> None:
    page = render(selection, ids=None)
    assert all(f"SECRET-{i:03d}" in page for i in range(40))
    assert "SECRET-1" in page
    assert "left out" not in page
    assert not re.search(r"and \d+ more", page)


def test_some_ids_can_be_printed() -> None:
    page = render({"by": "ids"}, ids=2)
    assert page.count("SECRET-") == 2
    assert "and 38 more; the hash covers all of them" in page


def test_counts_of_skipped_names_remain() -> None:
    page = render(SELECTIONS[0])
    assert "1 of the named ids was skipped (unknown); s: 1 of the named ids was skipped (forgotten before)" in page


def test_rules_and_numbers_of_a_selection_remain() -> None:
    chosen = {"by": "random", "fraction": 0.05, "seed": 3, "file": "x.csv", "index": 2, "hold": None, "value": True}
    assert leave_out_names(chosen) == chosen
    left = leave_out_names({"value": "DE", "ids": (), "a": {"b": ["c", "d"]}})
    assert left == {"value": "left out", "ids": 0, "a": {"b": 2}}


@pytest.mark.parametrize(
    ("selection", "phrase", "title"),
    [
        (SELECTIONS[0], "record ids given explicitly", "40 listed records"),
        (SELECTIONS[1], "every training record of 2 subjects", "2 subjects"),
        (SELECTIONS[2], "training records whose column patient is the requested value", "Records by column patient"),
        ({"by": "random", "fraction": 0.05}, "5 % of the training records, drawn at random", "5 % random records"),
        ({"by": "random", "count": 40, "seed": 1}, "training records drawn at random, seed 1", "40 random records"),
        ({"by": "class", "index": 1}, "every training record of class cat", "Class cat"),
        ({"by": "memorised", "count": 40}, "the most memorised training records, ranked by an ensemble",
         "40 memorised records"),
        ({"by": "future"}, "by future", "Records by future"),
    ],
)  # fmt: skip
def test_phrases_and_titles_without_names(selection: dict[str, object], phrase: str, title: str) -> None:
    request = RequestSummary(40, leave_out_names(selection))
    assert describe_selection(request, ("dog", "cat")) == phrase
    assert describe_title(request, ("dog", "cat")) == title
    assert describe_title(RequestSummary(1, {"by": "ids"})) == "1 listed record"
