"""Requests: ids as a set, holds, and what cannot be carried out."""

from __future__ import annotations

import numpy as np
import pytest

from expunge.core.errors import DataError, RequestError
from expunge.core.hashing import hash_json
from expunge.core.request import ForgetRequest
from expunge.core.split import Split


def split() -> Split:
    return Split(retain=["a", "b", "c"], forget=[], validation=["v"], test=["t"], non_members=["u"])


def test_ids_are_a_sorted_set() -> None:
    request = ForgetRequest(["b", "a", "b"])  # type: ignore[arg-type]
    assert request.record_ids.tolist() == ["a", "b"]
    assert request.hash == ForgetRequest(np.array(["a", "b"])).hash == hash_json(["a", "b"])
    assert request.to_json()["records"] == 2


def test_one_string_is_not_a_list_of_ids() -> None:
    with pytest.raises(DataError, match="list of strings"):
        ForgetRequest("abc")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="list of strings"):
        ForgetRequest([["a", "b"], ["c"]])  # type: ignore[arg-type]


def test_an_id_on_hold_and_in_the_forget_set() -> None:
    with pytest.raises(RequestError, match="both in the forget set and on hold") as caught:
        ForgetRequest(["a", "b"], hold=["c", "b"])  # type: ignore[arg-type]
    assert caught.value.where == "b"
    with pytest.raises(RequestError, match="1 more"):
        ForgetRequest(["a", "b"], hold=["a", "b"])  # type: ignore[arg-type]
    assert ForgetRequest(["a"], hold=["b"]).apply(split()).retain.tolist() == ["b", "c"]  # type: ignore[arg-type]


def test_apply() -> None:
    after = ForgetRequest(["c", "a"]).apply(split())  # type: ignore[arg-type]
    assert after.retain.tolist() == ["b"]
    assert sorted(after.forget.tolist()) == ["a", "c"]
    assert ForgetRequest(()).apply(split()).hash == split().hash  # type: ignore[arg-type]


def test_nothing_retained() -> None:
    with pytest.raises(RequestError, match="retain set would be empty"):
        ForgetRequest(["a", "b", "c"]).apply(split())  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", ["nobody", "t", "v", "u"])
def test_ids_outside_the_training_set(wrong: str) -> None:
    with pytest.raises(RequestError) as caught:
        ForgetRequest(["a", wrong]).apply(split())  # type: ignore[arg-type]
    assert caught.value.where == wrong


def test_json_round_trip() -> None:
    request = ForgetRequest(["c", "a"], selection={"by": "ids", "file": "x"}, hold=["b"])  # type: ignore[arg-type]
    body = request.to_json()
    assert body["hold"] == ["b"]
    again = ForgetRequest.from_json(body)
    assert again.to_json() == body
    assert ForgetRequest.from_json({k: v for k, v in body.items() if k != "hold"}).hash == request.hash
