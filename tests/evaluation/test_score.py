from __future__ import annotations

import json
import re

import pytest

from expunge.core.errors import ConfigError, FileError
from expunge.core.files import write_json
from expunge.evaluation.score import DIRECTIONS, SCHEMA, SCHEMA_VERSION, Interval, Score, Scores, format_table

UA = Score("UA", 5.97, "%", "reference", "d.", "s", reference=6.77, interval=Interval(5.0, 7.0))
TA = Score("TA", 90.29, "%", "higher", "d.")
AUC = Score("AUC", 0.53421, "", "reference", "d.")


def test_gap_is_signed_value_minus_reference():
    assert UA.gap == pytest.approx(-0.80)
    assert TA.gap is None


def test_unknown_direction_suggests_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'higher'"):
        Score("UA", 1.0, "%", "hihger", "d.")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_is_finite(value):
    with pytest.raises(ConfigError, match="score UA"):
        Score("UA", value, "%", "reference", "d.")


def test_scores_keep_their_order_and_names_are_distinct():
    scores = Scores((TA, UA))
    assert scores.names == ("TA", "UA")
    assert [s.name for s in scores] == ["TA", "UA"]
    assert "UA" in scores
    assert "RA" not in scores
    assert scores.value("RA") is None
    with pytest.raises(ConfigError, match="duplicate score"):
        Scores((UA, UA))
    with pytest.raises(ConfigError, match="no score 'UAA'"):
        scores["UAA"]


def test_json_round_trip(tmp_path):
    scores = Scores((UA, TA, AUC), {"request": "abc", "sparsity": 0.95}, ("a note",))
    scores.save(tmp_path / "scores.json")
    assert Scores.load(tmp_path / "scores.json") == scores
    body = json.loads((tmp_path / "scores.json").read_text())
    assert body["kind"] == SCHEMA
    assert body["schema_version"] == SCHEMA_VERSION
    assert body["scores"][0]["gap"] == pytest.approx(-0.80)
    assert Scores.from_json(scores.to_json()) == scores


def test_load_refuses_other_files(tmp_path):
    write_json(tmp_path / "a.json", SCHEMA, SCHEMA_VERSION, {"scores": [{"name": "UA"}]})
    with pytest.raises(FileError, match=r"a\.json: scores\.0: the key 'value' is missing"):
        Scores.load(tmp_path / "a.json")
    write_json(tmp_path / "b.json", "expunge.split", 1, {})
    with pytest.raises(FileError, match=r"expunge\.split"):
        Scores.load(tmp_path / "b.json")


def test_text_prints_everything_a_score_has():
    lines = Scores((UA, TA, AUC), notes=("a caution",)).text().splitlines()
    assert lines[0].split() == ["score", "value", "interval", "reference", "gap", "direction"]
    for piece in ("5.97 %", "6.77 %", "-0.80", "[5.00, 7.00] (95 %)", DIRECTIONS["reference"]):
        assert piece in lines[1]
    assert DIRECTIONS["higher"] in lines[2]
    assert "0.5342" in lines[3]
    assert lines[4] == "note: a caution"


def test_an_interval_stands_beside_the_value_that_it_is_of():
    """In the text, in a notebook, in the representation of a score, and where a score was not measured."""
    scores = Scores((UA, AUC), missing={"RA": "no records"})
    order = ["score", "value", "interval", "reference", "gap", "direction"]
    assert [list(row) for row in scores.table()] == [order] * 3
    assert " ".join(scores.text().splitlines()[1].split()).startswith("UA 5.97 % [5.00, 7.00] (95 %) 6.77 % -0.80 ")
    assert re.findall("<th[^>]*>([^<]*)</th>", scores._repr_html_())[-6:] == order
    assert "5.97 %, interval [5.00, 7.00] (95 %), reference 6.77 %, gap -0.80;" in repr(UA)


def test_with_reference_takes_values_by_name():
    other = Scores((Score("TA", 93.33, "%", "higher", "d."),))
    scores = Scores((UA, TA)).with_reference(other)
    assert scores["TA"].gap == pytest.approx(-3.04)
    assert scores["UA"].reference is None


def test_format_table_columns_line_up():
    text = format_table([{"a": "x", "b": "1", "c": "z"}, {"a": "yyyy", "b": "100", "c": "z"}])
    assert text.splitlines() == ["a       b  c", "x       1  z", "yyyy  100  z"]
    assert format_table([]) == ""


def test_the_text_of_a_score_has_its_interval():
    assert "interval [5.00, 7.00] (95 %)" in repr(UA)
    assert "interval" not in repr(TA)
