"""What determines the result of a stage, and how that of two results differs."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping
from typing import Any

from expunge.core.hashing import hash_json
from expunge.core.show import repr_fields


@dataclasses.dataclass(frozen=True)
class Ingredients:
    """Everything that determines the result of a stage.

    Attributes:
        stage, version: name and version of the stage.
        source: dotted name to hash of every module that the stage uses.
        config: the configuration of the stage.
        inputs: input name to the output hash of an earlier stage.
        fingerprint: hash of names, sizes and times of the data files, for the stage that reads them; else None.
    """

    stage: str
    version: int
    source: Mapping[str, str]
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    fingerprint: str | None = None

    __repr__ = repr_fields

    @functools.cached_property
    def key(self) -> str:
        """The key of the entry: 40 hex digits."""
        return hash_json(self.to_json())[:40]

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def list_differences(before: Ingredients, now: Ingredients) -> list[str]:
    """Stage version, source, configuration, inputs and data files that differ, one line each."""
    found = []
    if before.version != now.version:
        found.append(f"stage version: {before.version} -> {now.version}")
    for module in sorted({*before.source, *now.source}):
        if before.source.get(module) != now.source.get(module):
            verb = "added" if module not in before.source else "removed" if module not in now.source else "changed"
            found.append(f"source {verb}: {module}")
    old, new = dict(_flatten(before.config)), dict(_flatten(now.config))
    found += [
        f"configuration: {key}: {old.get(key, 'absent')} -> {new.get(key, 'absent')}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]
    names = sorted({*before.inputs, *now.inputs})
    found += [f"input changed: {name}" for name in names if before.inputs.get(name) != now.inputs.get(name)]
    if before.fingerprint != now.fingerprint:
        found.append("data files changed (names, sizes or times)")
    return found


def _flatten(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """The dotted paths of a nested mapping, and their values as JSON."""
    if isinstance(value, Mapping) and value:
        for key, below in value.items():
            yield from _flatten(below, f"{path}.{key}" if path else str(key))
    else:
        yield path, json.dumps(value, sort_keys=True)
