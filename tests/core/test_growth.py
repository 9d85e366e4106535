"""A request by ids sorts its own ids only: the work on the other records is one look-up each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from expunge.core.errors import DataError, RequestError
from expunge.core.split import Split, is_in
from expunge.data import Records, forget_ids, make_split


def make_records(count: int) -> Records:
    ids = [f"r{number:06d}" for number in range(count)]
    return Records("rows", ids, np.arange(count) % 2, ("a", "b"), np.zeros((count, 1), np.float32))


@pytest.mark.parametrize("seed", range(20))
def test_is_in_is_numpys(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pool = np.array([f"{number:0{rng.integers(1, 4)}d}" for number in range(30)])
    ids, among = rng.choice(pool, rng.integers(0, 20)), rng.choice(pool, rng.integers(0, 20))
    assert is_in(ids, among).tolist() == np.isin(ids, among).tolist()


def test_work_of_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    records = make_records(5000)
    split = make_split(records)
    sizes: list[int] = []
    sort, unique, isin = np.sort, np.unique, np.isin

    def counting(function: Any) -> Any:
        return lambda values, *a, **k: (sizes.append(len(values)), function(values, *a, **k))[1]

    for name, function in (("sort", sort), ("unique", unique), ("isin", isin)):
        monkeypatch.setattr(np, name, counting(function))
    request = forget_ids(records, split, split.retain[:50])
    after = request.apply(split)
    assert len(after.forget) == 50
    assert sum(sizes) <= 5 * 50


def test_duplicates_are_still_named() -> None:
    with pytest.raises(DataError, match="duplicate") as found:
        Split(["a", "b"], [], ["b"], [], [])  # type: ignore[arg-type]
    assert "(in retain, validation)" in str(found.value)
    with pytest.raises(DataError, match="rows: r1"):
        Records("rows", ["r0", "r1", "r1"], [0, 1, 1], ("a", "b"), np.zeros((3, 1), np.float32))


def test_absent_ids_are_still_refused() -> None:
    records = make_records(100)
    split = make_split(records)
    with pytest.raises(RequestError, match="never trained on"):
        forget_ids(records, split, [split.retain[0], split.test[0]])
    with pytest.raises(RequestError, match="no such record"):
        forget_ids(records, split, ["r9"])
