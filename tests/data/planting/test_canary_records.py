"""Canaries: never the true label, all other labels, features untouched, also for streams."""

from __future__ import annotations

import numpy as np
import pytest

import expunge
from expunge.core.errors import RequestError
from expunge.data import Records, forget_planted, plant_canaries


def make(classes: int, count: int = 600) -> Records:
    features = np.arange(2 * count, dtype=np.float32).reshape(count, 2)
    names = [f"c{i}" for i in range(classes)]
    return Records("t", [f"r{i:04d}" for i in range(count)], np.arange(count) % classes, names, features)


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_canary_never_has_the_true_label(classes: int, seed: int) -> None:
    records = make(classes)
    planted = plant_canaries(records, expunge.make_split(records), fraction=1.0, seed=seed)
    count = len(planted) - len(records)
    true = dict(zip(records.record_ids.tolist(), records.labels.tolist(), strict=True))
    bases = planted.planted.base_ids.tolist()
    wrong = planted.labels[len(records) :].tolist()
    assert not any(true[base] == label for base, label in zip(bases, wrong, strict=True))
    assert np.array_equal(planted.features[len(records) :], records.features[records.rows(bases)])
    shifts = np.bincount([(label - true[base]) % classes for base, label in zip(bases, wrong, strict=True)])
    assert shifts[0] == 0
    assert len(shifts) == classes  # every other class occurs,
    expected = count / (classes - 1)
    assert np.abs(shifts[1:] - expected).max() < 5 * np.sqrt(expected)  # and about equally often


def test_canaries_take_the_place_of_their_bases() -> None:
    records = make(4)
    split = expunge.make_split(records)
    planted = plant_canaries(records, split, count=30)
    after = expunge.make_split(planted)
    assert not np.isin(planted.planted.base_ids, after.train).any()
    request = forget_planted(planted, after)
    assert np.array_equal(request.record_ids, np.sort(planted.planted.record_ids))
    assert request.apply(after).counts() == {**split.counts(), "retain": len(split.retain) - 30, "forget": 30}


def test_streamed_records_can_have_canaries() -> None:
    table = make(3, 60)
    items = [(table.features[i], int(table.labels[i])) for i in range(60)]
    records = Records("s", table.record_ids, table.labels, table.class_names, stream=items)
    planted = plant_canaries(records, expunge.make_split(records), count=5)
    for row in range(60, 65):
        base = records.rows([planted.planted.base_ids[row - 60]])[0]
        assert np.array_equal(planted.read_features(row), table.features[base])  # checks the label of the item too
        assert planted.labels[row] != table.labels[base]
    assert np.array_equal(planted.read_features(7), table.features[7])


def test_one_class_has_no_wrong_label() -> None:
    records = make(1)
    with pytest.raises(RequestError, match="one class"):
        plant_canaries(records, expunge.make_split(records), count=5)


def test_an_id_that_is_taken_is_refused() -> None:
    records = make(2, 40)
    ids = [*records.record_ids[:-1].tolist(), "r0000~canary"]
    records = Records("t", ids, records.labels, records.class_names, records.features)
    split = expunge.Split(retain=["r0000", "r0001"], forget=[], validation=[], test=[], non_members=[])
    with pytest.raises(RequestError, match="id of another record"):
        plant_canaries(records, split, count=2)
