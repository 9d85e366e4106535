"""Records refuse what no method can use, and find rows by id."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from expunge.core.errors import DataError
from expunge.core.seeds import record_keys
from expunge.data import Records, forget_random, load_records, make_split
from expunge.experiments.stages.stage_inputs import hash_records

ONE = {"labels": [0, 1], "class_names": ("x", "y")}


def test_rows_by_id(make_images: Callable[..., Records]) -> None:
    records = make_images()
    np.testing.assert_array_equal(records.rows(["r003", "r000"]), [3, 0])
    with pytest.raises(DataError, match="r3: no such record"):
        records.rows(["r3"])
    np.testing.assert_array_equal(records.keys, record_keys(records.record_ids))
    assert records.input_shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"record_ids": ["a", "a"]}, "is a duplicate"),
        ({"labels": [0, 2]}, "label 2 is not one of the 2 classes"),
        ({"labels": [0]}, "1 labels for 2 record ids"),
        ({"features": np.asarray([[0.0], [np.nan]], np.float32)}, "s: b: NaN or infinite values in 1 record\n"),
        ({"features": np.zeros((2, 1))}, "not float64"),
        ({"features": None}, "either features"),
        ({"subject_ids": ["p"]}, "1 subject_ids"),
        ({"columns": {"flag": [True]}}, "1 column flag"),
    ],
)
def test_bad_records(more: dict[str, object], match: str) -> None:
    good = {"record_ids": ["a", "b"], **ONE, "features": np.zeros((2, 1), np.float32)}
    Records("s", **good)
    with pytest.raises(DataError, match=match):
        Records("s", **{**good, **more})


def test_the_hash_sees_every_part() -> None:
    base = {"record_ids": ["a", "b"], **ONE, "features": np.zeros((2, 1), np.float32), "subject_ids": ["p", "q"]}
    first = Records("s", **base).hash
    assert Records("other name", **base).hash == first
    for change in (
        {"record_ids": ["a", "c"]},
        {"labels": [0, 0]},
        {"class_names": ("x", "z")},
        {"features": np.ones((2, 1), np.float32)},
        {"subject_ids": ["p", "p"]},
    ):
        assert Records("s", **{**base, **change}).hash != first


def test_hashes_of_known_records_never_change(tmp_path: Path) -> None:
    """Splits, requests and stored stages of earlier releases belong to these hashes."""
    digits = load_records("digits")
    split = make_split(digits, seed=0)
    request = forget_random(digits, split, fraction=0.05, seed=0)
    assert [h.hash[:16] for h in (digits, split, request)] == [
        "22dbc0bd08b0be57",
        "9a7bdc327d4220d3",
        "36d105fce7f6ee3b",
    ]
    path = tmp_path / "t.csv"
    path.write_text("no,who,age,town,left,grade\n1,ada,3,Ulm,yes,good\n2,bob,4,,no,bad\n")
    roles = {"label": "grade", "id": "no", "subject": "who", "numeric": ["age"], "categorical": ["town"]}
    table = load_records("table", path=str(path), boolean=["left"], **roles)
    assert (table.hash[:16], hash_records(table)[:16]) == ("a16ffbbb64eaa51a", "cf451a55816e8a87")


def test_type_checkers_see_the_arguments_of_records() -> None:
    """The declared `__init__` is for them only; at run time it is that of the dataclass, with the same arguments."""
    source = Path(inspect.getsourcefile(Records) or "").read_text(encoding="utf-8")
    (cls,) = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ClassDef) and n.name == "Records"]
    (declared,) = [n for n in ast.walk(cls) if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
    own = list(inspect.signature(Records).parameters.values())
    assert [argument.arg for argument in declared.args.args[1:]] == [parameter.name for parameter in own]
    assert len(declared.args.defaults) == sum(parameter.default is not parameter.empty for parameter in own)


def test_the_data_directory_is_public() -> None:
    import expunge.data

    assert "DataDir" in expunge.data.__all__
    assert expunge.data.DataDir.choose("x", "/data").directory == Path("/data")
