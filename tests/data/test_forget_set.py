"""Forget sets: each selection against a direct count, and every mistake with its message."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from expunge.core.errors import ConfigError, RequestError
from expunge.core.split import Split
from expunge.data import (
    Records,
    forget_class,
    forget_column,
    forget_ids,
    forget_random,
    forget_subjects,
    make_split,
    read_ids,
    select_forget,
)


@pytest.fixture
def records(make_images: Callable[..., Records]) -> Records:
    who = np.repeat(["ada", "bob", "cyd", "dan", "eve"], 8)
    columns = {"left": np.arange(40) % 3 == 0, "town": np.asarray(["Ulm", "Bonn"] * 20)}
    return make_images(subject_ids=who, columns=columns)


@pytest.fixture
def split(records: Records) -> Split:
    return make_split(records, seed=1)


def ids(records: Records, split: Split, rows: np.ndarray) -> list[str]:
    return sorted(set(records.record_ids[rows]) & set(split.retain))


def test_ids_from_a_list_and_from_files(records: Records, split: Split, tmp_path: Path) -> None:
    wanted = sorted(split.retain[[4, 1, 9]].tolist())
    text = tmp_path / "ids.txt"
    text.write_text("\ufeff" + "\n\n".join(wanted) + "\r\n", encoding="utf-8")
    bare = tmp_path / "bare.csv"
    bare.write_text("\n".join(wanted))
    table = tmp_path / "table.csv"
    table.write_text("name,record_id\n" + "".join(f'"x, y",{i}\n' for i in wanted))
    for source in (wanted, iter(wanted), text, str(bare), table):
        assert forget_ids(records, split, source).record_ids.tolist() == wanted
    assert forget_ids(records, split, text).selection["file"] == str(text)
    assert select_forget(records, split, {"by": "ids", "file": str(table)}).record_ids.tolist() == wanted
    assert select_forget(records, split, {"by": "ids", "ids": wanted}).record_ids.tolist() == wanted


def test_bad_files_of_ids(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no such file"):
        read_ids(tmp_path / "none.txt")
    wide = tmp_path / "wide.csv"
    wide.write_text("a,b\nc,d\n")
    with pytest.raises(RequestError, match="record_id"):
        read_ids(wide)
    short = tmp_path / "short.csv"
    short.write_text("name,record_id\nx,1\ny\n")
    with pytest.raises(RequestError, match=r"short\.csv:3"):
        read_ids(short)
    binary = tmp_path / "binary.txt"
    binary.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(RequestError, match="cannot be read"):
        read_ids(binary)


def test_unknown_and_untrained_ids(records: Records, split: Split) -> None:
    with pytest.raises(RequestError, match="did you mean 'r0"):
        forget_ids(records, split, ["r0077"])
    with pytest.raises(RequestError, match="no such record") as caught:
        forget_ids(records, split, ["r-0xx"])
    assert "did you mean" not in str(caught.value.hint), "ids that are made alike resemble each other"
    with pytest.raises(RequestError, match="1 more like it"):
        forget_ids(records, split, ["x", "y"])
    with pytest.raises(RequestError, match="never trained on"):
        forget_ids(records, split, split.test[:1])
    after = forget_ids(records, split, split.retain[:1]).apply(split)
    with pytest.raises(RequestError, match="forgotten before"):
        forget_ids(records, after, split.retain[:1])


def test_an_empty_selection_is_allowed_here(records: Records, split: Split) -> None:
    for request in (
        forget_ids(records, split, []),
        forget_random(records, split, count=0),
        forget_subjects(records, split, []),
    ):
        assert len(request.record_ids) == 0
        assert request.apply(split).hash == split.hash


def test_subjects(records: Records, split: Split) -> None:
    request = forget_subjects(records, split, ["bob", "eve"])
    assert request.record_ids.tolist() == ids(records, split, np.isin(records.subject_ids, ["bob", "eve"]))
    outside = {"validation": 1, "test": 1, "non_members": 2}
    assert forget_subjects(records, split, "bob").selection == {
        "by": "subjects", "subjects": ["bob"], "outside": outside,
    }  # fmt: skip
    with pytest.raises(RequestError, match="did you mean 'bob'"):
        forget_subjects(records, split, ["bop"])
    whole = make_split(records, group="subject", seed=2)
    outside = str(records.subject_ids[records.rows(whole.test[:1])][0])
    with pytest.raises(RequestError, match="never trained on"):
        forget_subjects(records, whole, [outside])
    numbered = Records(
        "n", records.record_ids, records.labels, records.class_names, records.features, subject_ids=["7"] * 40
    )
    assert len(forget_subjects(numbered, split, [7]).record_ids) == len(split.retain)


def test_a_selection_by_subjects_needs_subject_ids(make_images: Callable[..., Records]) -> None:
    records = make_images()
    with pytest.raises(RequestError, match="no subject ids"):
        forget_subjects(records, make_split(records), ["bob"])


def test_class_by_name_and_index(records: Records, split: Split) -> None:
    request = forget_class(records, split, "bee")
    assert request.record_ids.tolist() == ids(records, split, records.labels == 1)
    assert request.forgotten_class == 1
    for same in (
        forget_class(records, split, 1),
        select_forget(records, split, {"by": "class", "index": 1}),
        select_forget(records, split, {"by": "class", "name": "bee", "index": None}),
    ):
        assert same.hash == request.hash
        assert same.selection == {"by": "class", "index": 1, "name": "bee"}
    with pytest.raises(RequestError, match="did you mean 'bee'"):
        forget_class(records, split, "been")
    with pytest.raises(RequestError, match="from 0 to 3"):
        forget_class(records, split, 4)


def test_random_is_of_the_right_size_nested_and_blind_to_order(records: Records, split: Split) -> None:
    n = len(split.retain)
    small, large = forget_random(records, split, fraction=0.2, seed=5), forget_random(records, split, count=15, seed=5)
    assert len(small.record_ids) == round(0.2 * n)
    assert set(small.record_ids) < set(large.record_ids)
    assert set(large.record_ids) <= set(split.retain)
    assert forget_random(records, split, count=15, seed=6).hash != large.hash
    order = np.random.default_rng(0).permutation(40)
    other = Records(
        "small", records.record_ids[order], records.labels[order], records.class_names, records.features[order]
    )
    assert forget_random(other, make_split(other, seed=1), count=15, seed=5).hash == large.hash
    assert large.selection == {"by": "random", "count": 15, "seed": 5}


def test_random_is_even(records: Records, split: Split) -> None:
    hits = dict.fromkeys(split.retain.tolist(), 0)
    for seed in range(400):
        for record_id in forget_random(records, split, count=5, seed=seed).record_ids:
            hits[str(record_id)] += 1
    p = 5 / len(hits)
    spread = np.std(list(hits.values())) / np.sqrt(400 * p * (1 - p))
    assert 0.5 < spread < 1.5


def test_bad_random(records: Records, split: Split) -> None:
    for options in ({}, {"fraction": 0.1, "count": 3}, {"fraction": 1.5}, {"count": 1000}, {"count": -1}):
        with pytest.raises(RequestError):
            forget_random(records, split, **options)


def test_columns(records: Records, split: Split) -> None:
    assert forget_column(records, split, "left").record_ids.tolist() == ids(records, split, records.columns["left"])
    town = select_forget(records, split, {"by": "column", "column": "town", "value": "Ulm"})
    assert town.record_ids.tolist() == ids(records, split, records.columns["town"] == "Ulm")
    with pytest.raises(RequestError, match="not boolean"):
        forget_column(records, split, "town")
    with pytest.raises(RequestError, match="did you mean 'town'"):
        forget_column(records, split, "towns")
    with pytest.raises(RequestError, match="did you mean 'Ulm'"):
        forget_column(records, split, "town", value="Uln")


def test_hold(records: Records, split: Split, tmp_path: Path) -> None:
    on_hold = str(ids(records, split, records.labels == 1)[0])
    with pytest.raises(RequestError, match="both in the forget set and on hold"):
        forget_ids(records, split, [on_hold], hold=[on_hold])
    request = forget_class(records, split, "bee", hold=[on_hold])
    assert on_hold not in request.record_ids
    assert request.forgotten_class is None
    assert request.hold.tolist() == [on_hold]
    file = tmp_path / "hold.txt"
    file.write_text(on_hold)
    again = select_forget(records, split, {"by": "class", "name": "bee", "hold": str(file)})
    assert again.hash == request.hash
    everything = forget_random(records, split, count=len(split.retain) - 1, hold=[on_hold])
    assert on_hold not in everything.record_ids
    with pytest.raises(RequestError, match="no such record"):
        forget_random(records, split, count=1, hold=["nobody"])


@pytest.mark.parametrize(
    ("selection", "match"),
    [
        ({}, "unknown selection"),
        ({"by": "klass"}, "did you mean 'class'"),
        ({"by": "class"}, "needs name or index"),
        ({"by": "class", "name": "bee", "index": 1}, "needs name or index"),
        ({"by": "random", "fractoin": 0.1}, "did you mean 'fraction'"),
        ({"by": "random", "fraction": "many"}, "fraction: 'many' is not a finite number"),
        ({"by": "class", "index": "many"}, "class"),
        ({"by": "subjects", "subjects": 7}, "subjects"),
    ],
)
def test_bad_selections(records: Records, split: Split, selection: dict[str, object], match: str) -> None:
    with pytest.raises((ConfigError, RequestError), match=match):
        select_forget(records, split, selection)


def test_subjects_and_random_by_selection(records: Records, split: Split) -> None:
    one = select_forget(records, split, {"by": "subjects", "subjects": ["ada"]})
    assert one.hash == forget_subjects(records, split, ["ada"]).hash
    two = select_forget(records, split, {"by": "random", "fraction": 0.1, "seed": 0})
    assert two.hash == forget_random(records, split, fraction=0.1).hash
