"""Corrections: new values of records, requests for them, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import expunge
from expunge.core.errors import ConfigError, DataError, RequestError
from expunge.core.hashing import hash_json
from expunge.core.request import ForgetRequest
from expunge.core.split import Correction, Split
from expunge.data import blank_columns, correct_labels, correct_records, select_forget
from expunge.data.batches import Batches
from expunge.data.corrections.values import check_correction, get_values_after, get_values_before
from expunge.data.records import Records
from expunge.data.selection import check_selection
from expunge.data.splitting import load_or_make_split

IDS = [f"r{i}" for i in range(8)]


@pytest.fixture
def table() -> Records:
    features = np.arange(1, 33, dtype=np.float32).reshape(8, 4)
    features[5, 2] = 0.0
    places = {"age": [0], "ward": [2, 3]}
    return Records("visits", IDS, [0, 1, 2, 0, 1, 2, 0, 1], ("a", "b", "7"), features, feature_columns=places)


@pytest.fixture
def split() -> Split:
    return Split(retain=IDS[:6], forget=(), validation=(), test=IDS[6:7], non_members=IDS[7:])


# ---- values


def test_later_corrections_win_and_the_records_do_not_change(table: Records) -> None:
    before = table.hash
    first = Correction(["r2", "r0"], labels=(1, 2), blank=(1,), fill=-1.0)
    second = Correction(["r0"], labels=(1,), blank=(0,))
    found = correct_records(table, [first, second])
    assert found.labels.tolist() == [1, 1, 1, 0, 1, 2, 0, 1]
    assert found.features[0].tolist() == [0.0, -1.0, 3.0, 4.0]
    assert found.features[2].tolist() == [9.0, -1.0, 11.0, 12.0]
    assert np.array_equal(found.features[[1, 3, 4, 5, 6, 7]], table.features[[1, 3, 4, 5, 6, 7]])
    assert table.hash == before != found.hash
    assert correct_records(table, [first, second]) is found, "made again"
    assert correct_records(table, ()) is table
    labels_only = correct_records(table, [Correction(["r1"], labels=(0,))])
    assert labels_only.features is table.features


def test_streams_are_relabelled(digits: Records, cpu: expunge.Runtime) -> None:
    class Items:
        labels = digits.labels

        def __len__(self) -> int:
            return len(digits)

        def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
            return torch.from_numpy(digits.features[row]), int(digits.labels[row])

    import dataclasses

    stream = dataclasses.replace(digits, features=None, stream=Items())
    first = str(digits.record_ids[3])
    new = int(digits.labels[3] + 1) % 10
    corrected = correct_records(stream, [Correction([first], labels=(new,))])
    ((x, y),) = Batches(corrected, np.array([2, 3]), batch_size=2).in_order()
    assert y.tolist() == [digits.labels[2], new]
    assert torch.equal(x[1], torch.from_numpy(digits.features[3]).float() / 255)
    with pytest.raises(RequestError, match="only their labels"):
        correct_records(stream, [Correction([first], blank=(0,))])


def test_values_before_and_after_a_request(table: Records, split: Split) -> None:
    earlier = correct_labels(table, split, {"r0": "b"}).apply(split)
    request = correct_labels(table, earlier, {"r0": "7", "r1": "a"})
    after = request.apply(earlier)
    for state in (earlier, after):
        assert get_values_before(table, state, request).labels[:2].tolist() == [1, 1]
        assert get_values_after(table, state, request).labels[:2].tolist() == [2, 0]
    assert request.is_applied(after)
    assert not request.is_applied(earlier)
    removal = ForgetRequest(["r0"])
    assert get_values_before(table, after, removal).labels[0] == 2


# ---- requests


def test_labels_by_name_by_index_and_from_a_file(table: Records, split: Split, tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text("record_id;reason;label\nr1;x;a\n r0 ;y;1\n\nr2;z;0\n")
    for labels in ({"r1": "a", "r0": 1, "r2": 0}, {"r1": 0, "r0": "b", "r2": "0"}, file):
        request = correct_labels(table, split, labels)
        assert request.record_ids.tolist() == ["r0", "r1", "r2"]
        assert request.correction is not None
        assert request.correction.labels == (1, 0, 0)
    assert correct_labels(table, split, {"r0": "7"}).correction.labels == (2,), "a name goes before an index"
    assert request.selection == {"by": "correct", "file": str(file), "changes": "labels"}


def test_columns_by_name_and_number(table: Records, split: Split) -> None:
    request = blank_columns(table, split, ["r1", "r0"], ["ward", 0])
    assert request.correction is not None
    assert request.correction.blank == (0, 2, 3)
    assert request.selection["columns"] == ["ward", "0"]
    found = correct_records(table, [request.correction])
    assert found.features[:2].tolist() == [[0.0, 2.0, 0.0, 0.0], [0.0, 6.0, 0.0, 0.0]]
    skipped = blank_columns(table, split, ["r4", "r5"], [2])
    assert skipped.record_ids.tolist() == ["r4"]
    assert skipped.selection["skipped"] == {"blank already": ["r5"]}


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"r0": "a"}, "r0: the record has the label 'a' already"),
        ({"r0": "b", "r1": "b", "r2": 2}, r"r1: the record has the label 'b' already \(and 1 more\)"),
        ({"r0": 3}, "r0: the new label 3 is not one of the 3 classes"),
        ({"r0": "8"}, "r0: the new label 8 is not one of the 3 classes"),
        ({"r0": -1}, "the new label -1"),
        ({"r0": True}, "'True' is not an integer"),
        ({"r0": 1.5}, "'1.5' is not an integer"),
        ({"r0": "c"}, "no class 'c'"),
        ({"r6": "b"}, "r6: is in the test set"),
        ({"r9": "b"}, "r9: no such record"),
        ({}, "no record is named"),
    ],
)
def test_labels_that_are_refused(labels: dict[str, Any], message: str, table: Records, split: Split) -> None:
    with pytest.raises(RequestError, match=message):
        correct_labels(table, split, labels)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("record_id\nr0\n", "has no column record_id, or none of labels"),
        ("r0,a\n", "has no column record_id"),
        ("", "has no column record_id"),
        ("record_id,label\nr0\n", "labels.csv:2: the line has no record id, or no label"),
        ("record_id,label\nr0,b\nr0,a\n", "labels.csv:3: the record 'r0' is named twice"),
    ],
)
def test_files_of_labels_that_are_refused(
    text: str, message: str, table: Records, split: Split, tmp_path: Path
) -> None:
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(RequestError, match=message):
        correct_labels(table, split, tmp_path / "labels.csv")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["wart"], "no column 'wart'.*\n.*did you mean 'ward'"),
        ([4], "no feature 4"),
        ([-1], "no feature -1"),
        ([True], "not an integer"),
        ([], "no column is named"),
    ],
)
def test_columns_that_are_refused(columns: list[Any], message: str, table: Records, split: Split) -> None:
    with pytest.raises(RequestError, match=message):
        blank_columns(table, split, ["r0"], columns)


def test_blanking_what_is_blank_or_no_table_is_refused(table: Records, split: Split, digits: Records) -> None:
    with pytest.raises(RequestError, match="changes nothing"):
        blank_columns(table, split, ["r5"], [2])
    with pytest.raises(RequestError, match=r"in tables only; these records have the shape 1 x 8 x 8 \(uint8\)"):
        blank_columns(digits, split, ["r5"], [2])
    after = blank_columns(table, split, ["r0"], ["age"], fill=5.0).apply(split)
    with pytest.raises(RequestError, match="changes nothing: these columns are 5 already"):
        blank_columns(table, after, ["r0"], ["age"], fill=5.0)


def test_a_record_on_hold_is_not_corrected(table: Records, split: Split) -> None:
    with pytest.raises(RequestError, match="on hold"):
        correct_labels(table, split, {"r0": "b"}, hold=["r0"])
    assert correct_labels(table, split, {"r0": "b"}, hold=["r1"]).hold.tolist() == ["r1"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "changes nothing"),
        ({"labels": (0, 1)}, "2 labels for 1 record"),
        ({"labels": (-1,)}, "-1 is negative"),
        ({"blank": (-2,)}, "-2 is negative"),
        ({"blank": (1,), "fill": float("nan")}, "fill: the value"),
    ],
)
def test_corrections_made_by_hand(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Correction(["r0"], **values)
    with pytest.raises(RequestError, match="named twice"):
        Correction(["r0", "r0"], labels=(0, 1))
    with pytest.raises(RequestError, match="not for the records"):
        ForgetRequest(["r1"], correction=Correction(["r0"], labels=(1,)))


def test_checks_of_a_correction_made_by_hand(table: Records, split: Split) -> None:
    for correction, message in (
        (Correction(["r0"], labels=(0,)), "changes nothing: these values are already in all of 1 record"),
        (Correction(["r0"], labels=(9,)), "the new label 9"),
        (Correction(["r0"], blank=(9,)), "no feature 9"),
        (Correction(["r6"], labels=(1,)), "test set"),
    ):
        with pytest.raises(RequestError, match=message):
            check_correction(table, split, correction)
    with pytest.raises(RequestError, match="corrects all 6 training records"):
        ForgetRequest(IDS[:6], correction=Correction(IDS[:6], blank=(0,))).apply(split)


# ---- files


def test_a_split_with_corrections_is_saved_and_checked(table: Records, split: Split, tmp_path: Path) -> None:
    parts = {
        part: sorted(getattr(split, part).tolist())
        for part in ("retain", "forget", "validation", "test", "non_members")
    }
    assert split.hash == hash_json(parts), "the hash of a split without corrections is as before"
    request = blank_columns(table, split, ["r0", "r1"], ["age"], fill=2.5)
    after = request.apply(split)
    assert after.hash != split.hash
    assert after.base_hash == split.base_hash
    assert after.counts() == split.counts()
    path = tmp_path / "split.json"
    after.save(path)
    loaded = load_or_make_split(table, {"file": path})
    assert loaded.hash == after.hash
    assert loaded.corrections[0].fill == 2.5
    assert ForgetRequest.from_json(json.loads(json.dumps(request.to_json()))).hash == request.hash
    body = json.loads(path.read_text())
    for damage, message in (
        ({**body["corrections"][0], "fill": 3.0}, "edited"),
        ({"record_ids": ["r0"]}, "corrections: a correction is damaged"),
        ("nothing", "corrections: a correction is damaged"),
        ({"record_ids": ["r0"], "blank": ["x"]}, "corrections: a correction is damaged"),
    ):
        path.write_text(json.dumps({**body, "corrections": [damage]}))
        with pytest.raises(DataError, match=message):
            Split.load(path)
    wide = split.add_correction(Correction(["r0"], labels=(8,)))
    wide.save(path)
    with pytest.raises(RequestError, match="the new label 8"):
        load_or_make_split(table, {"file": path})


def test_a_forgotten_record_cannot_be_corrected(table: Records, split: Split) -> None:
    after = split.move_to_forget(["r0"])
    with pytest.raises(RequestError, match="was forgotten before"):
        correct_labels(table, after, {"r0": "b"})


# ---- the section `forget`


def test_selections(table: Records, split: Split, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("r0\nr3\n")
    (tmp_path / "labels.csv").write_text("id,label\nr0,b\n")
    for selection, ids in (
        ({"labels": {"r0": "b"}}, ["r0"]),
        ({"file": str(tmp_path / "labels.csv")}, ["r0"]),
        ({"ids": ["r0", "r3"], "blank": ["age"], "fill": 1}, ["r3"]),
        ({"file": str(tmp_path / "ids.txt"), "blank": [1]}, ["r0", "r3"]),
    ):
        request = select_forget(table, split, {"by": "correct", **selection})
        assert request.record_ids.tolist() == ids
        assert request.correction is not None


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({}, "needs labels or ids or file"),
        ({"ids": ["r0"]}, "needs `blank`"),
        ({"labels": {"r0": 1}, "fill": 0.0}, "needs `blank`"),
        ({"labels": {"r0": 1}, "blank": ["age"]}, "either `labels` or `blank`"),
        ({"labels": ["r0"]}, "is not a mapping"),
        ({"ids": ["r0"], "blank": "age"}, "is not a list of columns"),
        ({"ids": ["r0"], "blank": ["age"], "fill": "0"}, "is not a number"),
        ({"ids": ["r0"], "blank": ["age"], "fil": 0}, "did you mean 'fill'"),
        ({"labels": {True: 1}}, "an id is True"),
    ],
)
def test_selections_that_are_refused(selection: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_selection({"by": "correct", **selection})


def test_names_of_features_of_the_sources(workplace: Path) -> None:
    Path("visits.csv").write_text("id,age,ward,out\na,30,x,0\nb,40,y,1\nc,50,,0\n")
    options = {"label": "out", "id": "id", "numeric": ["age"], "categorical": ["ward"]}
    records = expunge.load_records("table", path="visits.csv", **options)
    assert {name: list(places) for name, places in records.feature_columns.items()} == {"age": [0], "ward": [1, 2, 3]}
    corrected = correct_records(records, [Correction(["b"], blank=tuple(records.feature_columns["ward"]))])
    assert corrected.features[1].tolist() == [40.0, 0.0, 0.0, 0.0]
