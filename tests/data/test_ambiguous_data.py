"""Data that two readers could take for two things are refused, with the place; nothing merges silently."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from expunge.core.errors import ConfigError, DataError
from expunge.data import Records, load_records
from expunge.data.items import as_label, as_labels

TWO = {"record_ids": ["a", "b"], "labels": [0, 1], "class_names": ("x", "y"), "features": np.zeros((2, 3), np.float32)}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"class_names": ("cat", "cat")}, "classes 0 and 1 have the same name, 'cat'"),
        ({"class_names": (1, "1")}, "classes 0 and 1 have the same name, '1'"),
        ({"class_names": ("cat", "")}, "class 1 has no name"),
        ({"class_names": ("cat", " ")}, "class 1 has no name"),
        ({"class_names": ("cat", "\u200b")}, "class 1 has no name"),
        ({"record_ids": ["a", "\xa0\u200b"]}, "record id of row 1 is missing or blank"),
        ({"labels": [0, 0.6]}, "label 1 is 0.6, not an integer"),
        ({"labels": np.asarray([0.0, np.nan])}, "label 1 is nan, not an integer"),
        ({"labels": ["0", "1"]}, "label 0 is 0, not an integer"),
        ({"labels": np.asarray([0, 2**64 - 1], np.uint64)}, "18446744073709551615 is not a class index"),
        ({"labels": np.eye(2, dtype=np.int64)}, "labels are one-hot .2 x 2.*"),
        ({"labels": np.eye(2, dtype=np.float32)}, "labels are one-hot"),
        ({"labels": np.asarray([[0, 1], [1, 1]])}, "labels have the shape 2 x 2"),
        ({"labels": [None, 1]}, "not an integer"),
        ({"record_ids": ["a", ""]}, "record id of row 1 is missing or blank"),
        ({"record_ids": ["a", " \t"]}, "record id of row 1 is missing or blank"),
        ({"record_ids": ["a", None]}, "record id of row 1 is missing or blank"),
        ({"record_ids": np.asarray([1.0, np.nan])}, "record id of row 1 is missing or blank"),
        ({"subject_ids": ["ada", ""]}, "subject id of row 1 is missing or blank"),
        ({"subject_ids": [None, "ada"]}, "subject id of row 0 is missing or blank"),
        ({"subject_ids": [float("nan"), "ada"]}, "subject id of row 0 is missing or blank"),
        ({"subject_ids": np.asarray([np.nan, np.nan])}, r"subject id of row 0 is missing or blank \(and 1 more\)"),
        ({"partition": ["train", ""]}, "partition of row 1 is missing or blank"),
        (
            {"record_ids": [], "labels": [], "features": np.zeros((0, 3), np.float32)},
            "there are no records",
        ),
    ],
)
def test_records_refuse(change: dict[str, Any], match: str) -> None:
    Records("s", **TWO)
    with pytest.raises(DataError, match=match):
        Records("s", **{**TWO, **change})


@pytest.mark.parametrize(
    "labels",
    [np.asarray([0, 1], t) for t in "bhilBHILQ?"] + [[0, 1], [0.0, 1.0], [[0], [1]], np.asarray([0, 1], object)],
)
def test_every_type_of_integer_is_a_label(labels: Any) -> None:
    assert as_labels(labels, "s").tolist() == [0, 1]
    assert as_labels(labels, "s").dtype == np.int64
    assert [as_label(label, "s") for label in labels] == [0, 1]


@pytest.mark.parametrize(
    "label", [0.6, float("inf"), "1", None, [0, 1, 0], np.asarray([0.2]), float("nan"), "cat", {}, [1, 1]]
)
def test_no_other_value_is_a_label(label: Any) -> None:
    with pytest.raises(DataError, match="one-hot" if str(label) == "[0, 1, 0]" else "not an integer"):
        as_label(label, "s")


def write(path: Path, **arrays: Any) -> Path:
    values = {"features": np.zeros((len(arrays["labels"]), 3), np.float32), **arrays}
    np.savez(path, **values)
    return path


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"labels": np.asarray([0, 300000] * 20)}, "would make 300,001 classes|is not one of 0 to"),
        ({"labels": np.asarray([0, 999] * 20)}, "label 999 would make 1,000 classes for 40 records"),
        ({"labels": np.asarray([0, -1], np.int64).astype(np.uint32)}, "4294967295"),
        ({"labels": np.asarray([0, -1])}, "-1"),
        ({"labels": np.eye(4, dtype=np.uint8)}, "one-hot"),
        ({"labels": np.eye(4)}, "one-hot"),
        ({"labels": np.asarray([0.6, 1.2])}, "float64, not integers"),
        ({"labels": np.asarray(["a", "b"])}, "not integers from 0"),
        ({"labels": np.asarray([0, 1]), "names": np.asarray(["same", "same"])}, "the same name"),
        ({"labels": np.asarray([0, 1]), "who": np.asarray(["ada", " "])}, "subject id of row 1"),
        ({"labels": np.asarray([0, 1]), "who": np.asarray([1.0, np.nan])}, "subject id of row 1"),
        ({"labels": np.asarray([0, 1]), "id": np.asarray(["", "b"])}, "record id of row 0"),
        ({"labels": np.asarray([], np.int64)}, "no records"),
        ({"labels": np.asarray([0, 1]), "names": np.asarray([["a"], ["b"]])}, "class names have the shape"),
    ],
)
def test_npz_refuses(tmp_path: Path, arrays: dict[str, Any], match: str) -> None:
    keys = {"names": "class_names", "who": "subjects", "id": "ids"}
    options = {keys[key]: key for key in arrays if key in keys}
    with pytest.raises(DataError, match=match):
        load_records("npz", path=str(write(tmp_path / "a.npz", **arrays)), **options)


def test_class_names_of_bytes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", labels=np.asarray([0, 1]), names=np.asarray([b"cat", b"dog"]))
    assert load_records("npz", path=str(path), class_names="names").class_names == ("cat", "dog")


CSV = "no,who,age,town,left,grade,part\n1,ada,3,Ulm,yes,good,train\n2,bob,4,,no,bad,test\n3,eve,5,Ulm,no,good,train\n"
ROLES: dict[str, Any] = {
    "label": "grade", "id": "no", "subject": "who", "numeric": ["age"], "categorical": ["town"], "boolean": ["left"],
    "partition": "part",
}  # fmt: skip


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., Records]:
    def load(text: str, **options: Any) -> Records:
        path = tmp_path / "people.csv"
        path.write_text(text, encoding="utf-8")
        return load_records("table", path=str(path), **{**ROLES, **options})

    return load


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("Ulm,yes", "Ulm,", r"people\.csv:2: the boolean column 'left' is blank"),
        (",no,bad", ",  ,bad", r"people\.csv:3: the boolean column 'left' is blank"),
        (",bad,", ",\u200b,", r"people\.csv:3: the label 'grade' is blank"),
        (",bad,", ",\xa0,", r"people\.csv:3: the label 'grade' is blank"),
        (",bad,", ",,", r"people\.csv:3: the label 'grade' is blank"),
        ("2,bob", ",bob", r"people\.csv:3: the record id 'no' is blank"),
        ("2,bob", " ,bob", r"people\.csv:3: the record id 'no' is blank"),
        ("2,bob", "2,", r"people\.csv:3: the subject id 'who' is blank"),
        (",test", ",", r"people\.csv:3: the partition 'part' is blank"),
        ("4,,no", ",,no", r"people\.csv:3: age is ''"),
        ("4,,no", "1_000,,no", r"people\.csv:3: age is '1_000'"),
        ("4,,no", "NA,,no", r"people\.csv:3: age is 'NA'"),
        (CSV[CSV.index("\n") + 1 :], "", "has a header and no rows"),
    ],
)
def test_tables_refuse_blank_cells(table: Callable[..., Records], old: str, new: str, match: str) -> None:
    records = table(CSV)
    assert records.columns["left"].tolist() == [True, False, False]
    assert records.columns["town"].tolist() == ["Ulm", "", "Ulm"]  # a category of its own
    assert old in CSV
    with pytest.raises(DataError, match=match):
        table(CSV.replace(old, new, 1))


def test_tables_refuse_a_value_that_is_listed_twice(table: Callable[..., Records]) -> None:
    for options in ({"classes": ["good", "bad", "good"]}, {"categories": {"town": ["Ulm", "", "Ulm"]}}):
        with pytest.raises(ConfigError, match="is a duplicate"):
            table(CSV, **options)


def test_decimal_marks_and_delimiters(table: Callable[..., Records]) -> None:
    roles = {"label": "y", "numeric": ["a"], "id": None, "subject": None, "partition": None, "categorical": []}
    german = "a;y\n1,5;x\n-,25;y\n3;x\n2,5e-1;y\n"
    records = table(german, delimiter=";", decimal=",", boolean=[], **roles)
    assert records.features[:, 0].tolist() == [1.5, -0.25, 3.0, 0.25]
    for name in ("tab", "\\t", "\t"):
        assert table("a\ty\n1\tx\n2\ty\n", delimiter=name, boolean=[], **roles).features[:, 0].tolist() == [1, 2]
    for text, options, match in (
        (german, {"delimiter": ";"}, "decimal: ','"),
        ("a;y\n1.234;x\n", {"delimiter": ";", "decimal": ","}, r"people\.csv:2.*1.234"),
        ("a;y\n1.234,5;x\n", {"delimiter": ";", "decimal": ","}, r"people\.csv:2"),
        ('a,y\n"1,234.5",x\n', {}, r"people\.csv:2.*1,234.5"),
    ):
        with pytest.raises(DataError, match=match):
            table(text, boolean=[], **{**roles, **options})
    for text, options, match in (
        (german, {}, "delimiter: ';'"),
        ("a\ty\n1\tx\n", {}, "delimiter: 'tab'"),
        ("a,y\n1,x\n", {"decimal": ","}, "is the delimiter and the decimal mark"),
        ("a,y\n1,x\n", {"decimal": "'"}, "decimal mark is"),
        ("a,y\n1,x\n", {"delimiter": ""}, "one character"),
    ):
        with pytest.raises(ConfigError, match=match):
            table(text, boolean=[], **{**roles, **options})
