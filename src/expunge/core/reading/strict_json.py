"""Strict JSON for imported files: limited depth and digits, no duplicate keys, no RecursionError."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from typing import Any

from expunge.core.errors import ExpungeError, FileError

from .limits import JSON_DEPTH, JSON_DIGITS, JSON_VALUES

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(text: str, *, where: object, numbers: bool = False, error: type[ExpungeError] = FileError) -> Any:
    """Parse a JSON string.

    Args:
        text: the string; the caller limits its length.
        where: the file, for messages.
        numbers: refuse NaN and infinities, which are not JSON.
        error: class of the error.

    Raises:
        ExpungeError: (of class `error`) the string is not JSON, is nested deeper than `JSON_DEPTH`, or has a duplicate
            key or an integer of more than `JSON_DIGITS` digits.
    """
    JSON_VALUES.check(1 + sum(map(text.count, ",[{")), "has about", where=where, error=error)
    too_deep = f"is nested deeper than {JSON_DEPTH} levels"
    try:
        value = json.loads(text, object_pairs_hook=_build_unique, parse_int=_parse_int, **(_FINITE if numbers else {}))
    except RecursionError as problem:
        raise error(too_deep, where=where) from problem
    except ValueError as problem:
        raise error(f"is not JSON ({problem})", where=where) from problem
    if _is_deeper(value, JSON_DEPTH):
        raise error(too_deep, where=where)
    if _SURROGATE.search(text):
        _check_characters(value, where, error)
    return value


def _check_characters(value: Any, where: object, error: type[ExpungeError]) -> None:
    """Raise `error` if an escape is half of a surrogate pair: such a string can be neither printed nor hashed."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as problem:
        raise error(f"is not JSON of complete characters ({problem.reason})", where=where) from problem


def _build_unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        duplicate = next(key for key, count in counts.items() if count > 1)
        raise ValueError(f"duplicate key {duplicate[:60]!r}")
    return found


def _parse_int(digits: str) -> int:
    if len(digits.lstrip("-")) > JSON_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits; at most {JSON_DIGITS} are read")
    return int(digits)


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")


def _parse_float(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse_constant(text)


_FINITE: dict[str, Any] = {"parse_constant": _refuse_constant, "parse_float": _parse_float}


def _is_deeper(value: Any, limit: int) -> bool:
    """Whether lists and mappings are nested deeper than `limit` levels; computed without recursion."""
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(limit):
        children = (node.values() if isinstance(node, dict) else node for node in level)
        level = [child for group in children for child in group if isinstance(child, (dict, list))]
        if not level:
            return False
    return True
