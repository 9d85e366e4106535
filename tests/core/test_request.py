"""Requests: ids as a set, holds, and what cannot be carried out."""

from __future__ import annotations

import numpy as np
import pytest

from expunge.core.errors import DataError, RequestError
from expunge.core.hashing import hash_json
from expunge.core.request import ForgetRequest
from expunge.core.split import Split


def split() -> Split:
    return Split(retain=["a", "b", "c"], forget=[], validation=["v"], test=["t"], unseen=["u"])


def test_ids_are_a_sorted_set() -> None:
    request = ForgetRequest(["b", "a", "b"])  # type: ignore[arg-type]
    assert request.record_ids.tolist() == ["a", "b"]
    assert request.hash == ForgetRequest(np.array(["a", "b"])).hash == hash_json(["a", "b"])
    assert request.to_json()["records"] == 2


def test_one_text_is_not_a_list_of_ids() -> None:
    with pytest.raises(DataError, match="list of texts"):
        ForgetRequest("abc")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="list of texts"):
        ForgetRequest([["a", "b"], ["c"]])  # type: ignore[arg-type]


def test_kept_and_forgotten() -> None:
    with pytest.raises(RequestError, match="to be kept and to be forgotten") as caught:
        ForgetRequest(["a", "b"], keep=["c", "b"])  # type: ignore[arg-type]
    assert caught.value.where == "b"
    with pytest.raises(RequestError, match="1 more"):
        ForgetRequest(["a", "b"], keep=["a", "b"])  # type: ignore[arg-type]
    assert ForgetRequest(["a"], keep=["b"]).apply(split()).retain.tolist() == ["b", "c"]  # type: ignore[arg-type]


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
    request = ForgetRequest(["c", "a"], selection={"kind": "ids", "file": "x"}, keep=["b"])  # type: ignore[arg-type]
    body = request.to_json()
    assert body["keep"] == ["b"]
    again = ForgetRequest.from_json(body)
    assert again.to_json() == body
    assert ForgetRequest.from_json({k: v for k, v in body.items() if k != "keep"}).hash == request.hash
