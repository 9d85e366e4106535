"""Splits: every record in one place, requests only move ids, edited files are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.core.errors import DataError, FileError, RequestError
from expunge.core.split import PARTS, Split, as_ids


def split() -> Split:
    return Split(
        retain=["c", "a", "b"], forget=["f"], validation=["v"], test=["t", "s"], non_members=["u"], origin={"seed": 1}
    )


def test_as_ids() -> None:
    assert as_ids(["b", "a"]).tolist() == ["b", "a"]
    assert as_ids(iter([1, 2])).tolist() == ["1", "2"]
    assert as_ids(()).shape == (0,)
    nested = [["a", "b"], ["c"]], [["a", "b"], ["c", "d"]], [[]]
    for wrong in ("abc", b"abc", 5, None, *nested, [b"\xff"], np.array(["a"], dtype=object)[0:1].reshape(()), [["a"]]):
        with pytest.raises(DataError, match="list of strings"):
            as_ids(wrong)  # type: ignore[arg-type]


def test_parts() -> None:
    s = split()
    assert s.train.tolist() == ["a", "b", "c", "f"]
    assert s.counts() == {"retain": 3, "forget": 1, "validation": 1, "test": 2, "non_members": 1}


@pytest.mark.parametrize("part", PARTS)
def test_a_record_in_two_parts_is_a_duplicate(part: str) -> None:
    other = "test" if part != "test" else "non_members"
    parts: dict[str, list[str]] = {p: [p] for p in PARTS}
    parts[other] = [*parts[other], part]
    with pytest.raises(DataError, match="is a duplicate") as caught:
        Split(**parts)
    assert caught.value.where == part
    assert part in caught.value.what
    assert other in caught.value.what
    parts = {p: [p] for p in PARTS}
    parts[part] *= 2
    with pytest.raises(DataError, match=f"is a duplicate .*{part}"):
        Split(**parts)


def test_a_request_moves_ids_and_keeps_the_base_hash() -> None:
    before = split()
    after = before.move_to_forget(["b", "b", "c"])
    assert after.retain.tolist() == ["a"]
    assert sorted(after.forget.tolist()) == ["b", "c", "f"]
    assert after.base_hash == before.base_hash
    assert after.hash != before.hash
    assert before.retain.tolist() == ["c", "a", "b"]
    assert before.move_to_forget([]).hash == before.hash
    assert before.move_to_forget(["b"]).move_to_forget(["c"]).hash == after.hash


def test_hash_ignores_order_but_not_place() -> None:
    a = Split(retain=["a", "b"], forget=[], validation=["v"], test=["t"], non_members=[])
    b = Split(retain=["b", "a"], forget=[], validation=["v"], test=["t"], non_members=[], origin={"x": 1})
    c = Split(retain=["a", "b"], forget=[], validation=["t"], test=["v"], non_members=[])
    assert a.hash == b.hash != c.hash
    assert a.base_hash != c.base_hash


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("nobody", "is not a record of this model's training set"),
        ("f", "was forgotten before"),
        ("t", "is in the test set: by the split, it was never trained on"),
        ("v", "is in the validation set"),
        ("u", "is in the non-member pool: by the split, it was never trained on"),
    ],
)
def test_ids_that_cannot_be_forgotten(record: str, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        split().move_to_forget(["a", record])
    assert caught.value.where == record
    assert "c, a, b" in str(caught.value.hint)
    with pytest.raises(RequestError, match="1 more like it"):
        split().move_to_forget([record, "zzz"])


@given(
    st.sets(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x00"), min_size=1), min_size=1),
    st.data(),
)
def test_no_record_is_lost_or_doubled(ids: set[str], data: st.DataObject) -> None:
    names = sorted(ids)
    start = Split(retain=names, forget=[], validation=[], test=[], non_members=[])
    gone = data.draw(st.sets(st.sampled_from(names)))
    after = start.move_to_forget(gone)
    assert set(after.retain.tolist()) == ids - gone
    assert set(after.forget.tolist()) == gone
    assert after.base_hash == start.base_hash


def test_file_round_trip(tmp_path: Path) -> None:
    s = split()
    s.save(tmp_path / "s.json")
    found = Split.load(tmp_path / "s.json")
    assert found.hash == s.hash
    assert found.origin == {"seed": 1}
    for part in PARTS:
        assert np.array_equal(getattr(found, part), getattr(s, part))


def edited(path: Path, **changes: object) -> Path:
    split().save(path)
    body = json.loads(path.read_text())
    body.update(changes)
    path.write_text(json.dumps({k: v for k, v in body.items() if v != "REMOVE"}))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"retain": ["a", "b"]}, "was edited"),
        ({"retain": ["a", "b", "c", "t"]}, "is a duplicate"),
        ({"test": ["t", "v2"]}, "was edited"),
        ({"hash": "REMOVE"}, "was edited"),
        ({"non_members": "REMOVE"}, "has no non_members"),
        ({"retain": 5}, "not"),
        ({"retain": "abc"}, "not"),
        ({"retain": None}, "not"),
        ({"retain": [["a", "b"], ["c"]]}, "list of strings"),
        ({"schema_version": 99}, "schema_version"),
        ({"kind": "x"}, "not 'expunge.split'"),
    ],
)
def test_edited_files_are_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    path = edited(tmp_path / "s.json", **changes)
    with pytest.raises((DataError, FileError), match=message) as caught:
        Split.load(path)
    assert "s.json" in str(caught.value)
