"""Check the shape of JSON values from a file before they are used: keys, types, sizes; errors name the key.

A check is a function of a value and the dotted name of its key; it raises FileError. `check_shape` runs a check on the
contents of a file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from expunge.core.errors import FileError

Check = Callable[[Any, str], None]


def check_shape(value: Any, check: Check, *, where: object, hint: str | None = None) -> None:
    """Run a check on the contents of a file.

    Raises:
        FileError: a value has another type or size; `where` names the file and the key.

    Example:
        >>> check_shape({"count": "3"}, record({"count": number()}), where="a.json")
        Traceback (most recent call last):
            ...
        expunge.core.errors.FileError: a.json: count: is '3', not a number
    """
    try:
        check(value, "")
    except FileError as error:
        key = f"{where}: {error.where}" if error.where else where
        raise FileError(error.what, where=key, hint=error.hint or hint) from None


def fail(value: Any, key: str, wanted: str) -> None:
    """Raise FileError: the value of the key is not what is wanted."""
    raise FileError(f"is {_describe(value)}, not {wanted}", where=key)


def _describe(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return f"{'a mapping' if isinstance(value, dict) else 'a list'} of {len(value)}"
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}..."


def text(longest: int = 1_000, *, pattern: str | None = None, known: Collection[str] | None = None) -> Check:
    """A string of at most `longest` characters that matches `pattern` or is in `known`."""

    def check(value: Any, key: str) -> None:
        if not isinstance(value, str):
            fail(value, key, "a string")
        if len(value) > longest:
            raise FileError(f"is a string of {len(value):,} characters; the limit is {longest:,}", where=key)
        if pattern is not None and not re.fullmatch(pattern, value):
            fail(value, key, f"of the form {pattern}")
        if known is not None and value not in known:
            fail(value, key, f"one of {', '.join(known)}")

    return check


def number(*, low: float | None = None, high: float | None = None) -> Check:
    """A finite number (not true or false) from `low` to `high`."""

    def check(value: Any, key: str) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not -1e300 <= value <= 1e300:
            fail(value, key, "a number")
        if (low is not None and value < low) or (high is not None and value > high):
            fail(value, key, f"a number from {low} to {high}" if high is not None else f"a number from {low}")

    return check


def integer(low: int = -(2**63), high: int = 2**63 - 1) -> Check:
    """An integer from `low` to `high`."""

    def check(value: Any, key: str) -> None:
        if type(value) is not int or not low <= value <= high:
            fail(value, key, "an integer" if low < 0 else f"an integer from {low}")

    return check


def flag(value: Any, key: str) -> None:
    """True or false."""
    if not isinstance(value, bool):
        fail(value, key, "true or false")


def anything(value: Any, key: str) -> None:
    """Any JSON value."""


def maybe(inner: Check) -> Check:
    """Null, or what `inner` accepts."""
    return lambda value, key: None if value is None else inner(value, key)


def sequence(inner: Check, *, shortest: int = 0, longest: int = 1_000_000) -> Check:
    """A list of `shortest` to `longest` items, each accepted by `inner`."""

    def check(value: Any, key: str) -> None:
        if not isinstance(value, list):
            fail(value, key, "a list")
        if not shortest <= len(value) <= longest:
            fail(value, key, f"a list of {shortest:,} to {longest:,}")
        for index, item in enumerate(value):
            inner(item, f"{key}.{index}")

    return check


def mapping(inner: Check = anything, *, longest: int = 1_000_000, keys: int = 1_000) -> Check:
    """A mapping of any keys (of at most `keys` characters) to values that `inner` accepts."""

    def check(value: Any, key: str) -> None:
        if not isinstance(value, dict):
            fail(value, key, "a mapping")
        if len(value) > longest:
            fail(value, key, f"a mapping of at most {longest:,}")
        for name, item in value.items():
            if len(name) > keys:
                raise FileError(f"has a key of {len(name):,} characters; the limit is {keys:,}", where=key)
            inner(item, f"{key}.{name}" if key else name)

    return check


def record(required: Mapping[str, Check], optional: Mapping[str, Check] | None = None) -> Check:
    """A mapping with the required keys; other keys than these and the optional ones are not read."""
    known = {**required, **(optional or {})}

    def check(value: Any, key: str) -> None:
        if not isinstance(value, dict):
            fail(value, key, "a mapping")
        for name, inner in known.items():
            if name in value:
                inner(value[name], f"{key}.{name}" if key else name)
            elif name in required:
                raise FileError(f"the key {name!r} is missing", where=key or None)

    return check
