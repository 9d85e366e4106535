"""Rows: what names records, what is refused, and that they mean rows of the data after earlier requests too."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from own_networks import make_mlp

import expunge
from expunge.api.rows import find_rows, make_split
from expunge.core.errors import DataError, ExpungeError, RequestError
from expunge.data.records import Records


@pytest.mark.parametrize(
    "given",
    [
        [3, 14, 15],
        (3, 14, 15),
        np.array([3, 14, 15]),
        np.array([3, 14, 15], dtype=np.uint8),
        np.array([3, 14, 15], dtype=object),
        torch.tensor([3, 14, 15]),
        ["d0003", "d0014", "d0015"],
        np.array(["d0003", "d0014", "d0015"]),
        (row for row in (3, 14, 15)),
        np.isin(np.arange(480), [3, 14, 15]),
        torch.isin(torch.arange(480), torch.tensor([3, 14, 15])),
        [row in (3, 14, 15) for row in range(480)],
    ],
    ids=lambda given: f"{type(given).__name__} {getattr(given, 'dtype', '')}",
)
def test_rows_masks_and_ids_are_the_same_records(digits, given):
    assert find_rows(digits, given, "train").tolist() == [3, 14, 15]


def test_columns_of_a_table_and_files_are_rows(digits, tmp_path):
    pandas = pytest.importorskip("pandas")
    assert find_rows(digits, pandas.Series([3, 14]), "train").tolist() == [3, 14]
    chosen = pandas.Series(digits.labels == 3)
    assert find_rows(digits, chosen, "train").tolist() == np.flatnonzero(digits.labels == 3).tolist()
    (tmp_path / "ids.txt").write_text("d0003\nd0014\n")
    assert find_rows(digits, tmp_path / "ids.txt", "train").tolist() == [3, 14]
    assert find_rows(digits, str(tmp_path / "ids.txt"), "train").tolist() == [3, 14]


BAD = {
    "negative": ([3, -1], "row -1 is negative", "counts from the end"),
    "too large": ([3, 480], "no row 480 among 480", "0 to 479"),
    "float": ([3.0, 4.0], "is a float", "integers"),
    "float array": (np.array([0.5]), "is a float", "integers"),
    "float tensor": (torch.tensor([1.0]), "is a float", "integers"),
    "twice": ([3, 4, 3], r"row 3 \(id 'd0003'\) is named 2 times", "once"),
    "id twice": (["d0003", "d0003"], "row 3", "once"),
    "short mask": ([True, False], "a mask of 2 booleans for 480", "one boolean for each row"),
    "long mask": (np.ones(481, dtype=bool), "a mask of 481", "one boolean"),
    "unknown id": (["d0003", "d9999"], "no record 'd9999'", "they look like|did you mean"),
    "one id": ("d0003", "a single record id", r"\['d0003'\]"),
    "number": (5, "is an int", r"write \[5\]"),
    "nothing": (None, "NoneType", "row numbers"),
    "mapping": ({3: True}, "a dict", "row numbers"),
    "table": ([[1, 2], [3, 4]], "shape", ""),
    "mixed": ([3, "d0004"], "ids and row numbers together", "one of them"),
    "booleans and rows": ([True, 5], "booleans and row numbers together", "one of them"),
    "missing": ([3, None], "NoneType and row numbers", "one of them"),
    "bytes": ([b"d0003"], "values of type", ""),
    "large": (np.array([2**63], dtype=np.uint64), "no row", ""),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_row_is_refused(digits, name):
    given, message, hint = BAD[name]
    with pytest.raises(DataError, match=message) as caught:
        find_rows(digits, given, "train")
    assert caught.value.where == "train"
    assert re.search(hint, caught.value.hint or "")


def test_parts_may_not_share_rows(digits):
    with pytest.raises(DataError, match=r"row 10 \(id 'd0010'\) is in test and in train|in train and in test"):
        make_split(digits, range(20), {"test": range(10, 30)})
    with pytest.raises(DataError, match=r"\(and 4 more\)"):
        make_split(digits, range(10), {"test": range(10, 20), "non_members": range(15, 30)})
    with pytest.raises(DataError, match="trained on no row"):
        make_split(digits, [], {"test": range(10)})


def test_without_train_all_other_rows_are_training_rows(digits):
    split = make_split(digits, None, {"test": range(10), "non_members": range(10, 20)})
    assert split.counts() == {"retain": 460, "forget": 0, "validation": 0, "test": 10, "non_members": 10}
    assert set(split.retain) == set(digits.record_ids[20:])


def test_indices_mean_rows_of_the_data_after_earlier_requests(adopted, digits):
    first = adopted.forget([5, 7], "FT", epochs=0)
    second = first.forget([6, 8], "FT", epochs=0)
    assert sorted(second.split.forget.tolist()) == digits.record_ids[[5, 6, 7, 8]].tolist()
    assert len(second.split.retain) == 296
    assert second.outcome.request.record_ids.tolist() == digits.record_ids[[6, 8]].tolist()
    assert second.split.base_hash == adopted.split.base_hash
    assert adopted.split.counts()["forget"] == 0


def test_rows_that_cannot_be_forgotten_are_refused_by_row_and_id(adopted):
    first = adopted.forget([5, 7], "FT", epochs=0)
    with pytest.raises(RequestError, match=r"row 7 \(id 'd0007'\) was forgotten before"):
        first.forget([6, 7])
    with pytest.raises(RequestError, match=r"row 301 \(id 'd0301'\) was never trained on: it is in test"):
        adopted.forget([301])
    with pytest.raises(RequestError, match=r"row 479 \(id 'd0479'\) was never trained on \(and 1 more\)"):
        adopted.forget([478, 479][::-1])
    with pytest.raises(RequestError, match="names no record"):
        adopted.forget([])
    with pytest.raises(RequestError, match="row -1 is negative"):
        adopted.forget([-1])
    with pytest.raises(RequestError, match="on hold"):
        adopted.forget([5, 6], hold=[6])
    with pytest.raises(RequestError, match="forgets all 300"):
        adopted.forget(range(300))


def test_parts_are_checked_when_a_model_is_adopted(own_mlp, digits: Records):
    for arguments in ({"train": [0, 0]}, {"train": [-1]}, {"train": np.ones(3, bool)}, {"train": [0], "test": [0]}):
        with pytest.raises(ExpungeError):
            expunge.adopt(own_mlp, digits, factory=make_mlp, **arguments)


def test_a_subject_or_a_class_in_place_of_rows_is_named_with_its_function():
    subjects = np.asarray(["p07", "p08", "p07"])
    features = np.zeros((3, 2), dtype=np.float32)
    records = Records("toy", ["r0", "r1", "r2"], [0, 1, 1], ("no", "yes"), features, subject_ids=subjects)
    for name, words in (("p07", "forget_subjects(data, model.split, ['p07'])"),
                        ("yes", "forget_class(data, model.split, 'yes')")):  # fmt: skip
        for given in (name, [name]):
            with pytest.raises(RequestError) as refused:
                find_rows(records, given, "forget", RequestError)
            assert words in str(refused.value.hint)
    with pytest.raises(RequestError, match="there is no record 'p09'") as refused:
        find_rows(records, ["p09"], "forget", RequestError)
    assert "forget_subjects" not in str(refused.value.hint)
