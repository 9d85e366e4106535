import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_report import sample

from expunge.report import ModelResult, ReportScore, RequestSummary
from expunge.report.formatting import (
    describe_content,
    describe_selection,
    format_count,
    format_interval_end,
    format_list,
    format_number,
    format_signed,
    order_score_names,
    pluralise,
)
from expunge.report.provenance_tables import build_provenance_tables, flatten_facts


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (94.1, "%", "94.10"), (-0.004, "%", "0.00"), (-3.3, "%", "−3.30"), (0.5, "", "0.500"), (None, "%", "–"),
        (math.nan, "", "–"), (0.01424, "nats", "0.0142"),
        (math.inf, "%", "–"), (0.24, "passes", "0.24"), (40.0, "passes", "40.0"), (1234.5, "s", "1234"),
    ],
)  # fmt: skip
def test_numbers(value, unit, text):
    assert format_number(value, unit) == text


@given(st.floats(-1e6, 1e6))
def test_a_signed_number_reads_back(value):
    text = format_signed(value, "%")
    assert float(text.replace("−", "-")) == pytest.approx(value, abs=0.005001)
    assert text[0] in "+−" or float(text) == 0


def test_counts_and_lists():
    assert (format_count(9999), format_count(60000)) == ("9999", "60\u202f000")
    assert (pluralise(1, "record"), pluralise(2, "record"), pluralise(2, "class", "classes")) == (
        "1 record", "2 records", "2 classes"
    )  # fmt: skip
    assert [format_list(x) for x in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == ["", "a", "a and b", "a, b and c"]


@pytest.mark.parametrize(
    ("chosen", "phrase"),
    [
        ({"by": "random", "fraction": 0.05, "seed": 3}, "5 % of the training records, drawn at random, seed 3"),
        ({"by": "random", "count": 7}, "training records drawn at random"),
        ({"by": "class", "index": 1}, "every training record of class cat"),
        ({"by": "class", "name": "dog"}, "every training record of class dog"),
        ({"by": "subjects", "subjects": ["a"]}, "every training record of 1 subject: a"),
        ({"by": "subjects", "subjects": 1, "outside": {"test": 1}},
         "every training record of 1 subject (1 more record of the named subjects is outside the retain set and is not "
         "forgotten: 1 test)"),
        ({"by": "subjects", "subjects": ["p1", "p2", "p3"] * 2},
         "every training record of 6 subjects: p1, p2, p3, p1, p2 and 1 more"),
        ({"by": "column", "column": "minor"}, "training records whose column minor is true"),
        ({"by": "ids", "file": "x.txt"}, "record ids listed in x.txt"),
        ({"by": "ids"}, "record ids given explicitly"),
        ({"by": "odd", "with": "hand"}, "by odd, with hand"),
    ],
)  # fmt: skip
def test_selections_read_as_phrases(chosen, phrase):
    assert describe_selection(RequestSummary(3, chosen), ("dog", "cat")) == phrase


def test_spellings_of_one_score_share_a_column():
    models = [
        ModelResult("a", "original", {"seconds": ReportScore("seconds", 1.0),
                                      "mia_efficacy": ReportScore("mia_efficacy", 1.0)}),
        ModelResult("b", "unlearned", {"Disparity": ReportScore("Disparity", 1.0), "new": ReportScore("new", 1.0),
                                       "MIA-Efficacy": ReportScore("MIA-Efficacy", 1.0), "UA": ReportScore("UA", 1.0)}),
    ]  # fmt: skip
    assert order_score_names(models) == ["UA", "mia_efficacy", "new", "Disparity"]


def test_the_summary_is_one_sentence_without_a_verdict():
    text = describe_content(sample())
    assert text.count(".") == 1
    assert text.endswith(".")
    for words in ("72 records", "143 records", "FT, GA and l1-sparse", "digits", "dense and 90 % sparse"):
        assert words in text
    assert not any(word in text.lower() for word in ("success", "forgot ", "pass", "fail", "good", "effective"))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "yes"), (False, "no"), (None, "none"), ("", "–"), ("a", "a"), (3, "3"), (0, "0"), (0.1, "0.1"),
        (1 / 3, "0.333333"), (math.nan, "–"), (math.inf, "–"), ([], "–"), ({}, "–"), ((1, 2.5, False), "1, 2.5, no"),
        ([{"a": 1, "b": {"c": ""}}, {}], "a 1; b.c –, –"),
    ],
)  # fmt: skip
def test_facts_are_written_out(value, text):
    assert flatten_facts({"x": value, "y": {"x": value, "z": {}}}) == [("x", text), ("y.x", text), ("y.z", "–")]


def test_ends_of_intervals_have_a_minus_sign():
    assert [format_interval_end(value, "%") for value in (-1.24, -0.0, 12.06)] == ["−1.2", "0.0", "12.1"]
    assert format_interval_end(-0.1234, "") == "−0.123"


def test_shared_facts_stand_in_one_table_and_are_not_lost():
    models = [ModelResult(name, "unlearned", seeds={"order": 7, "initial": n}) for n, name in enumerate(("FT", "GA"))]
    tables = [(one["label"], one["tables"]) for one in build_provenance_tables(models)]
    assert tables == [
        ("In common", [("Seeds", [("order", "7")])]),
        ("FT", [("Seeds", [("initial", "0")])]),
        ("GA", [("Seeds", [("initial", "1")])]),
    ]
