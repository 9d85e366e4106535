"""Errors name the cause, the location and the fix."""

from __future__ import annotations

import pytest

from expunge.core import errors
from expunge.core.errors import ExpungeError, Interrupted, find_nearest_name, unknown_name_hint, with_article

KNOWN = ["Retrain", "FT", "GA", "l1-sparse"]


def test_text() -> None:
    assert str(ExpungeError("bad")) == "bad"
    assert str(ExpungeError("bad", where=3)) == "3: bad"
    assert str(ExpungeError("bad", where="a", hint="do b")) == "a: bad\n  hint: do b"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("retrian", "Retrain"),
        ("ft", "FT"),
        ("l1sparse", "l1-sparse"),
        ("L1-SPARSE", "l1-sparse"),
        ("zzz", None),
        ("", None),
        (5, None),
        (None, None),
        (["FT"], None),
    ],
)
def test_nearest(name: object, expected: str | None) -> None:
    assert find_nearest_name(name, KNOWN) == expected


def test_article() -> None:
    spoken = (
        "an int",
        "an Unlearned",
        "an un-pruning rule",
        "an electra",
        "a uint8",
        "an ndarray",
        "a union",
        "a bert",
        "a user",
    )
    assert [with_article(text.partition(" ")[2]) for text in spoken] == list(spoken)
    assert with_article("uninitialised weight") == "an uninitialised weight"


def test_hints() -> None:
    assert unknown_name_hint("retrian", KNOWN).startswith("did you mean 'Retrain'? (known: FT, GA, Retrain, l1-sparse")
    assert unknown_name_hint("zzz", KNOWN) == "known: FT, GA, Retrain, l1-sparse"
    assert unknown_name_hint(5, KNOWN) == "known: FT, GA, Retrain, l1-sparse"
    assert unknown_name_hint("x", []) == "none are registered"


def test_exit_codes() -> None:
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, ExpungeError)]
    assert len(classes) > 8
    assert all(c.exit_code == (130 if c is Interrupted else 2) for c in classes)
