"""Proxy requests: of the kind of the real one, from the other retained records, and nothing else of D_f is used."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from expunge.core.errors import ConfigError, RequestError
from expunge.core.split import Split
from expunge.data.records import Records
from expunge.data.selection import check_selection, forget_proxy, select_forget


def make(count: int = 60, classes: int = 3) -> tuple[Records, Split]:
    ids = [f"r{i:02d}" for i in range(count)]
    records = Records(
        "people", ids, np.arange(count) % classes, tuple("abc")[:classes], np.zeros((count, 2), np.float32),
        subject_ids=[f"s{i // 6}" for i in range(count)], columns={"old": np.arange(count) % 4 == 0},
    )  # fmt: skip
    return records, Split(retain=ids[:48], forget=[], validation=ids[48:52], test=ids[52:56], non_members=ids[56:])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "selection",
    [
        {"by": "class", "index": 1},
        {"by": "random", "fraction": 0.25},
        {"by": "random", "count": 7, "seed": 3},
        {"by": "ids", "ids": ["r00", "r05"]},
        {"by": "subjects", "subjects": ["s1", "s2"]},
        {"by": "column", "column": "old"},
    ],
    ids=lambda selection: selection["by"],
)
def test_the_proxy_is_retained_and_disjoint(selection: dict[str, Any], seed: int) -> None:
    records, split = make()
    real, proxy = select_forget(records, split, selection), forget_proxy(records, split, selection, seed=seed)
    assert not set(proxy.record_ids) & set(real.record_ids)
    assert set(proxy.record_ids) <= set(split.retain)
    if selection["by"] not in ("class", "subjects"):
        assert len(proxy.record_ids) == len(real.record_ids)
    assert select_forget(records, split, {"by": "proxy", "of": selection, "seed": seed}).hash == proxy.hash


def test_a_class_has_another_class() -> None:
    records, split = make()
    proxies = [forget_proxy(records, split, {"by": "class", "index": 1}, seed=seed) for seed in range(12)]
    assert {proxy.forgotten_class for proxy in proxies} == {0, 2}
    for proxy in proxies:
        retained = records.record_ids[np.isin(records.record_ids, split.retain)]
        own = retained[records.labels[records.rows(retained)] == proxy.forgotten_class]
        assert proxy.record_ids.tolist() == sorted(own)


def test_subjects_have_as_many_other_subjects() -> None:
    records, split = make()
    proxy = forget_proxy(records, split, {"by": "subjects", "subjects": ["s1", "s2"]})
    assert records.subject_ids is not None
    found = set(records.subject_ids[records.rows(proxy.record_ids)])
    assert len(found) == 2
    assert not found & {"s1", "s2"}
    assert len(proxy.record_ids) == 12


def test_the_memorised_have_the_next_most_memorised() -> None:
    records, split = make()
    ranking = [*split.test, *split.retain[::-1]]  # test records are not retained and are skipped
    proxy = forget_proxy(records, split, {"by": "memorised", "count": 4}, ranking=ranking)
    assert proxy.record_ids.tolist() == sorted(split.retain[::-1][4:8])


def test_records_on_hold_are_in_neither() -> None:
    records, split = make()
    hold = split.retain[:40].tolist()
    proxy = forget_proxy(records, split, {"by": "random", "count": 4, "hold": hold})
    assert set(proxy.record_ids) <= set(split.retain[40:])


def test_the_real_records_are_only_left_out() -> None:
    """Two real requests whose records the draw would not take have the same proxy."""
    records, split = make()
    order = forget_proxy(records, split, {"by": "ids", "ids": ["r00"]}, seed=1)
    first = order.record_ids[0]
    others = [name for name in split.retain if name != first][:2]
    proxies = [forget_proxy(records, split, {"by": "ids", "ids": [name]}, seed=1) for name in others]
    assert [proxy.record_ids.tolist() for proxy in proxies] == [[first], [first]]
    moved = forget_proxy(records, split, {"by": "ids", "ids": [first]}, seed=1)
    assert moved.record_ids.tolist() != [first]


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"by": "proxy", "of": {"by": "proxy", "of": {"by": "class", "index": 0}}}, "has no proxy"),
        ({"by": "proxy", "of": {"by": "correct", "labels": {"r00": 1}}}, "has no proxy"),
        ({"by": "proxy", "of": {"by": "clas", "index": 0}}, "unknown selection"),
        ({"by": "proxy", "of": "class"}, "is not a selection"),
        ({"by": "proxy"}, "needs of"),
        ({"by": "proxy", "of": {"by": "random", "count": 3}, "seed": "x"}, "not an integer"),
    ],
)
def test_what_has_no_proxy_is_refused(selection: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_selection(selection)


def test_too_few_others_are_refused() -> None:
    records, split = make()
    with pytest.raises(RequestError, match="40 other records cannot be drawn from 8"):
        forget_proxy(records, split, {"by": "random", "count": 40})
    with pytest.raises(RequestError, match="3 other subjects, not 5"):
        forget_proxy(records, split, {"by": "subjects", "subjects": [f"s{i}" for i in range(5)]})
    one, split = make(classes=1)
    with pytest.raises(RequestError, match="no other class"):
        forget_proxy(one, split, {"by": "class", "index": 0})
