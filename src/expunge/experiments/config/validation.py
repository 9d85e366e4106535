"""Validate plain values with a pydantic model; errors name file, line, key and the nearest known key."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import pydantic

from expunge.core.errors import ConfigError, find_nearest_name

from .yaml_source import KeyPath, YamlText

#: Where a value came from: a string to print, or a key path in a YAML text.
Origin = str | tuple[YamlText, KeyPath]
ModelT = TypeVar("ModelT", bound=pydantic.BaseModel)


class Origins:
    """Where the values of a configuration came from, by key path, as a tree: one step for each part of a path.

    Args:
        origin: of all values for which nothing else is set.
    """

    def __init__(self, origin: Origin | None = None) -> None:
        self._origin = origin
        self._below: dict[str | int, Origins] = {}

    def set(self, path: KeyPath, origin: Origin) -> None:
        """Set the origin of the value at `path` and of all values in it."""
        at = self
        for part in path:
            at = at._below.setdefault(part, Origins())
        at._origin, at._below = origin, {}

    def find(self, path: KeyPath) -> tuple[Origin | None, KeyPath]:
        """Return the origin of the longest known path above or at `path`, and the rest of `path`."""
        at, found, rest = self, self._origin, path
        for depth, part in enumerate(path, 1):
            if part not in at._below:
                break
            at = at._below[part]
            if at._origin is not None:
                found, rest = at._origin, path[depth:]
        return found, rest


class Section(pydantic.BaseModel):
    """A mapping with declared keys only."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class OpenSection(pydantic.BaseModel):
    """A mapping with undeclared keys, which a registry validates later."""

    model_config = pydantic.ConfigDict(extra="allow", frozen=True)

    @property
    def extra_keys(self) -> dict[str, Any]:
        """The undeclared keys and their values."""
        return dict(self.model_extra or {})


def leave_out_unset(values: dict[str, Any], *names: str) -> dict[str, Any]:
    """The values of a section without keys that are not set: a later key changes no stored configuration.

    Args:
        values: the values.
        *names: of the keys to leave out if they are None.
    """
    return {key: value for key, value in values.items() if key not in names or value is not None}


def validate_values(model: type[ModelT], values: Any, origins: Origins, *, what: str) -> ModelT:
    """Build `model` from plain values.

    Args:
        model: the pydantic model.
        values: nested plain values.
        origins: where the values came from.
        what: name of the whole in messages ("the configuration").

    Raises:
        ConfigError: the first problem, and the number of further ones.
    """
    try:
        found = model.model_validate(values)
    except pydantic.ValidationError as error:
        # A misspelt key is reported as unknown and as missing: sort unknown keys first.
        problems = sorted(error.errors(include_url=False), key=lambda problem: problem["type"] != "extra_forbidden")
        raise _explain(model, problems[0], len(problems) - 1, origins, what) from None
    for path, value in _list_numbers(values):
        if not math.isfinite(value):  # JSON has no such number: it would be stored as "not set"
            raise ConfigError(
                f"{'.'.join(map(str, path))}: is {value}, not a finite number", where=locate(origins, path)
            )
    return found


def _list_numbers(values: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, float]]:
    """The floating-point numbers in nested plain values, by their key paths."""
    if isinstance(values, float):
        yield path, values
    elif isinstance(values, (Mapping, list, tuple)):
        items = values.items() if isinstance(values, Mapping) else enumerate(values)
        for key, value in items:
            yield from _list_numbers(value, (*path, key))


def locate(origins: Origins, path: KeyPath) -> str:
    """Return where the value at `path` came from, as `file:line` or another string."""
    origin, rest = origins.find(path)
    if origin is None:
        return ".".join(map(str, path))
    if isinstance(origin, str):
        return origin
    text, above = origin
    return text.where((*above, *rest))


def _explain(model: type[pydantic.BaseModel], problem: Any, more: int, origins: Origins, what: str) -> ConfigError:
    path: KeyPath = problem["loc"]
    dotted = ".".join(map(str, path)) or what
    hint = None
    if problem["type"] == "extra_forbidden":
        text = f"unknown key {dotted!r}"
        names = known_keys(model, path[:-1])
        close = find_nearest_name(str(path[-1]), names)
        above = ".".join(map(str, path[:-1]))
        listing = f"{'keys' if not above else 'keys of ' + above}: {', '.join(names)}"
        hint = listing if close is None else f"did you mean {'.'.join([*map(str, path[:-1]), close])!r}? ({listing})"
    elif problem["type"] == "missing":
        text = f"the key {dotted!r} is missing"
    else:
        message = problem["msg"][0].lower() + problem["msg"][1:]
        text = f"{dotted}: {message} (found {_abbreviate(problem['input'])})"
    if more:
        text += f" (and {more} more problem{'s' if more > 1 else ''})"
    return ConfigError(text, where=locate(origins, path), hint=hint)


def _abbreviate(value: Any) -> str:
    """The representation of a value for a message, at most 200 characters."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def known_keys(model: type[pydantic.BaseModel], path: KeyPath = ()) -> list[str]:
    """The declared keys of the section at `path`; empty if there is none."""
    at = section_at(model, path)
    return [] if at is None else list(at.model_fields)


def section_at(model: type[pydantic.BaseModel], path: KeyPath) -> type[pydantic.BaseModel] | None:
    """The model of the section at `path`, or None if the path leads to a value or does not exist."""
    at: type[pydantic.BaseModel] = model
    for part in path:
        field = at.model_fields.get(str(part))
        found = None
        if field is not None:
            found = _find_model(field.annotation)
        elif isinstance(part, int):
            found = at
        if found is None:
            return None
        at = found
    return at


def _find_model(annotation: Any) -> type[pydantic.BaseModel] | None:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation if issubclass(annotation, pydantic.BaseModel) else None
    for inner in typing.get_args(annotation):
        found = _find_model(inner)
        if found is not None:
            return found
    return None
