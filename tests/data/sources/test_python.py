"""Custom data sources: npz files, tables, Python datasets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from expunge.core.errors import ConfigError, DataError
from expunge.data import load_records

RNG = np.random.default_rng(7)

# npz


def test_npz_layouts_and_keys(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    images = RNG.integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    np.savez(
        path,
        x=images,
        grey=images[..., 0],
        flat=images.reshape(5, -1).astype(np.float64),
        y=np.asarray([0, 1, 1, 0, 1]),
        who=np.asarray([3, 3, 4, 4, 4]),
        name=np.asarray(list("abcde")),
        part=np.asarray(["train"] * 4 + ["test"]),
        left=np.asarray([True, False, False, False, True]),
        classes=np.asarray(["no", "yes"]),
    )
    keys = {"labels": "y", "ids": "name", "subjects": "who", "partition": "part", "class_names": "classes"}
    records = load_records(
        "npz", data_dir=tmp_path, path="mine.npz", features="x", layout="nhwc", columns=["left"], **keys
    )
    np.testing.assert_array_equal(records.features, images.transpose(0, 3, 1, 2))
    assert records.features.dtype == np.uint8
    assert records.record_ids.tolist() == list("abcde")
    assert records.subject_ids.tolist() == ["3", "3", "4", "4", "4"]
    assert records.class_names == ("no", "yes")
    assert records.columns["left"].dtype == np.bool_
    grey = load_records("npz", path=path, features="grey", labels="y", layout="nhw")
    assert grey.features.shape == (5, 1, 4, 6)
    assert grey.record_ids[0] == "row-000000"
    assert load_records("npz", path=path, features="flat", labels="y").features.dtype == np.float32
    for options, match in (
        ({"features": "grey", "layout": "nhwc"}, "4 dimensions"),
        ({"features": "name"}, "numbers"),
        ({"features": "x", "labels": "left"}, "not integers from 0"),
        ({"features": "z"}, "no array 'z'"),
        ({"features": "x", "labels": "classes"}, "different lengths"),
    ):
        with pytest.raises(DataError, match=match):
            load_records("npz", path=path, **{"labels": "y", **options})
    with pytest.raises(ConfigError, match="did you mean 'nhwc'"):
        load_records("npz", path=path, layout="nwhc")


# CSV

CSV = """no,who,age,town,opted out,grade,note
7,ada,31,Ulm,yes,good,x
8,ada,32.5,Bonn,no,bad,"y, z"
9,bob,-1e2,,no,good,
"""
ROLES = {
    "label": "grade", "id": "no", "subject": "who", "numeric": ["age"], "categorical": ["town"],
    "boolean": ["opted out"], "ignore": ["note"],
}  # fmt: skip


@pytest.fixture
def csv_file(tmp_path: Path) -> Callable[..., Path]:
    def write(text: str) -> Path:
        path = tmp_path / "people.csv"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_table(csv_file: Callable[..., Path]) -> None:
    records = load_records("table", path=csv_file("\ufeff" + CSV), **ROLES)
    np.testing.assert_array_equal(records.features, np.asarray([[31, 0, 0, 1], [32.5, 0, 1, 0], [-100, 1, 0, 0]]))
    assert records.record_ids.tolist() == ["7", "8", "9"]
    assert records.subject_ids.tolist() == ["ada", "ada", "bob"]
    assert records.class_names == ("bad", "good")
    assert records.labels.tolist() == [1, 0, 1]
    assert records.columns["opted out"].tolist() == [True, False, False]
    fixed = {"categories": {"town": ["Bonn", "Ulm", ""]}, "classes": ["good", "bad"]}
    again = load_records(
        "table", path=csv_file(CSV.replace(",", ";").replace("y; z", "y, z")), delimiter=";", **ROLES, **fixed
    )
    np.testing.assert_array_equal(again.features[:, 1:], np.asarray([[0, 1, 0], [1, 0, 0], [0, 0, 1]]))
    assert again.labels.tolist() == [0, 1, 0]


def test_numbered_classes_sort_by_value(csv_file: Callable[..., Path]) -> None:
    path = csv_file("x,y\n" + "".join(f"0,{label}\n" for label in (10, 9, 2, -1)))
    records = load_records("table", path=path, label="y", numeric=["x"])
    assert records.class_names == ("-1", "2", "9", "10")
    assert records.record_ids[0] == "row-000000"


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("32.5", "", r"people\.csv:3.*age is ''"),
        ("32.5", "old", r"people\.csv:3.*age is 'old'"),
        ("32.5", "nan", r"people\.csv:3.*finite"),
        ("32.5", "1e60", r"people\.csv:3.*finite"),
        (",no,", ",maybe,", r"people\.csv:3.*true or false"),
        ("8,ada", "7,ada", "is a duplicate"),
        ('"y, z"', "y, z", r"people\.csv:3.*8 fields"),
        ("who,", "no,", "'no' is a duplicate"),
    ],
)
def test_bad_tables(csv_file: Callable[..., Path], old: str, new: str, match: str) -> None:
    with pytest.raises(DataError, match=match):
        load_records("table", path=csv_file(CSV.replace(old, new, 1)), **ROLES)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"numeric": ["agee"]}, "did you mean 'age'"),
        ({"ignore": []}, "no role is declared for 'note'"),
        ({"ignore": ["note", "age"]}, "both numeric and ignore"),
        ({"numeric": [], "categorical": [], "ignore": ["age", "town", "note"]}, "no column is a feature"),
        ({"categories": {"twon": []}}, "did you mean 'town'"),
        ({"delimiter": "ab"}, "one character"),
    ],
)
def test_bad_roles(csv_file: Callable[..., Path], change: dict[str, object], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        load_records("table", path=csv_file(CSV), **{**ROLES, **change})


def test_bad_table_files(csv_file: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match="is empty"):
        load_records("table", path=csv_file(""), **ROLES)
    path = csv_file("")
    path.write_bytes(b"\xff\xfe\0")
    with pytest.raises(DataError, match="UTF-8"):
        load_records("table", path=path, **ROLES)
    with pytest.raises(DataError, match="one of Ulm"):
        load_records("table", path=csv_file(CSV), **{**ROLES, "categories": {"town": ["Ulm"]}})


# datasets of one's own

MODULE = """
import torch

class Mine(torch.utils.data.Dataset):
    def __init__(self, count=6, attributes=True):
        self.count = count
        if attributes:
            self.record_ids = [f"m{i}" for i in range(count)]
            self.subject_ids = [i // 2 for i in range(count)]
            self.classes = ["even", "odd"]
    def __len__(self):
        return self.count
    def __getitem__(self, i):
        return torch.full((1, 4, 4), float(i)) + 0 * torch.rand(1), i % 2

def broken():
    raise RuntimeError("no disk")

def number():
    return 3

def unlabelled():
    return [1, 2]
"""


def test_python_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from expunge.data import Batches, source_fingerprint

    package = tmp_path / "own_package_for_test"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "sets.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    where = "own_package_for_test.sets"
    first = source_fingerprint("python", factory=f"{where}:Mine")
    before = torch.get_rng_state()
    records = load_records("python", factory=f"{where}:Mine", arguments={"count": 5})
    assert records.input_shape == (1, 4, 4)
    assert torch.equal(torch.get_rng_state(), before)
    assert records.record_ids.tolist() == ["m0", "m1", "m2", "m3", "m4"]
    assert records.subject_ids.tolist() == ["0", "0", "1", "1", "2"]
    assert records.class_names == ("even", "odd")
    ((x, y),) = Batches(records, [4, 1], batch_size=9).in_order()
    assert x[:, 0, 0, 0].tolist() == [4.0, 1.0]
    assert y.tolist() == [0, 1]
    bare = load_records("python", factory=f"{where}:Mine", arguments={"attributes": False})
    assert bare.record_ids[0] == "item-000000"
    assert bare.class_names == ("0", "1")
    (package / "sets.py").write_text(MODULE + "\n# changed\n")
    assert source_fingerprint("python", factory=f"{where}:Mine") != first
    for factory, error, match in (
        ("nothing", ConfigError, "package.module:function"),
        ("own_package_for_test.none:Mine", ConfigError, "no Python module"),
        (f"{where}:Mime", ConfigError, "did you mean 'Mine'"),
        (f"{where}:broken", DataError, "RuntimeError: no disk"),
        (f"{where}:number", DataError, "map-style"),
        (f"{where}:unlabelled", DataError, "item 0"),
    ):
        with pytest.raises(error, match=match):
            load_records("python", factory=factory)
    with pytest.raises(DataError, match="absent"):
        load_records("python", factory=f"{where}:Mine", depends_on=["absent"])
