"""Small edits of a JSON document: a value replaced by another, a key removed or renamed, a list cut or repeated."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

#: What a value is replaced by.
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 1.5, -0.0, 10**9, 10**38, 1e300, "", "x", "nan", "1", "a/../b", "\u202e",
    "x" * 3000, [], {}, [[]], [{}], {"a": 1}, ["a"], [None], [1, 2], [0.1, 0.2], {"low": 1, "high": 2}, {"name": None},
)  # fmt: skip


def find_paths(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Find the paths of all values, of a long list only those of the first two and of the last."""
    yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from find_paths(item, (*path, key))
    elif isinstance(value, list):
        for index in sorted({0, 1, len(value) - 1} & set(range(len(value)))):
            yield from find_paths(value[index], (*path, index))


def edit(document: dict[str, Any], rng: random.Random) -> tuple[str, dict[str, Any]]:
    """Return a description and a copy of the document with one edit; `kind` and `schema_version` stay."""
    paths = [p for p in find_paths(document) if p and p[0] not in ("kind", "schema_version")]
    path = rng.choice(paths)
    body = copy.deepcopy(document)
    above: Any = body
    for part in path[:-1]:
        above = above[part]
    last = path[-1]
    how = rng.choice(["replace"] * 6 + ["remove", "rename", "repeat", "swap"])
    if how == "remove":
        del above[last]
    elif how == "rename" and isinstance(above, dict):
        above[rng.choice(["", "x", "X" * 2000, f"{last} "])] = above.pop(last)  # type: ignore[index]
    elif how == "repeat" and isinstance(above, list):
        above.append(above[last])  # type: ignore[index]
    elif how == "swap":
        other: Any = document
        for part in rng.choice(paths):
            other = other[part]
        above[last] = copy.deepcopy(other)
    else:
        above[last] = copy.deepcopy(rng.choice(VALUES))
    return f"{how} {'.'.join(map(str, path))}: {str(above)[:60]}", body
