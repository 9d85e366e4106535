"""Parse YAML and record the line of every key, so that errors can name file and line.

Scalars follow YAML 1.2: `1e-4` is a number, `on` and `no` are strings. A duplicate key is an error. Only plain values
are built (no tags, no objects).
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import yaml

from expunge.core.errors import ConfigError
from expunge.core.files import PathLike, read_text
from expunge.core.reading.limits import YAML_BYTES, YAML_DEPTH, YAML_NODES
from expunge.core.show import repr_fields

KeyPath = tuple[str | int, ...]

_INT = re.compile(r"[-+]?[0-9]+\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
_WORDS: dict[str, Any] = {"true": True, "false": False, "null": None, "~": None, "": None}
_LEADING_ZERO = re.compile(r"[-+]?0[0-9]")
_INFINITE = re.compile(r"[-+]?\.inf\Z", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class YamlText:
    """A parsed YAML text.

    Attributes:
        name: the file, or another origin of the text.
        value: plain values: dictionaries, lists, strings, numbers, booleans, None.
        lines: the line (from 1) of every key and item, by its path from the root.
        characters: of all keys and values, with every alias expanded.
    """

    name: str
    value: Any
    lines: dict[KeyPath, int]
    characters: int = 0

    __repr__ = repr_fields

    def where(self, path: KeyPath) -> str:
        """`file:line` of a path, or of its nearest known ancestor."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.lines:
                return f"{self.name}:{self.lines[path[:length]]}"
        return self.name


def _parse_integer(text: str) -> int:
    """Parse an integer; more than 64 bits are an error."""
    number = int(text) if len(text) <= 20 else 2**64  # int() of thousands of digits is slow, then a ValueError
    if not -(2**63) <= number < 2**63:
        raise ConfigError(
            f"the integer {text[:30]} is outside the 64-bit integers",
            hint="quote it if it is a name, such as a record id",
        )
    return number


def parse_scalar(text: str) -> Any:
    """Parse a plain (unquoted) scalar.

    Raises:
        ConfigError: an integer of more than 64 bits, or a number with leading zeros.
    """
    word = text.lower() if text in (text.lower(), text.capitalize(), text.upper()) else text
    if word in _WORDS:
        return _WORDS[word]
    if _INT.match(text) or _FLOAT.match(text):
        if _LEADING_ZERO.match(text):
            raise ConfigError(
                f"{text[:30]} is a number whose leading zeros would be lost",
                hint=f"quote it if it is a name, such as a record id: '{text[:30]}'; else leave out the zeros",
            )
        return _parse_integer(text) if _INT.match(text) else float(text)
    if _INFINITE.match(text):
        return -math.inf if text.startswith("-") else math.inf
    if word == ".nan":
        return math.nan
    return text


_TOO_DEEP = f"is nested deeper than {YAML_DEPTH} levels"


class _CountingLoader(yaml.SafeLoader):
    """Composes nodes and counts them; an alias counts as many nodes as its anchor, without being expanded."""

    def __init__(self, text: str, name: str) -> None:
        super().__init__(text)
        self._name = name
        self._total = self.characters = self._depth = 0
        self._most, self._longest = YAML_NODES.value(), YAML_BYTES.value()
        self._sizes: dict[int, tuple[int, int]] = {}  # by identity of a node: nodes and characters in it

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        where = f"{self._name}:{self.peek_event().start_mark.line + 1}"
        if self.check_event(yaml.AliasEvent):
            node = super().compose_node(parent, index)
            if id(node) not in self._sizes:
                raise ConfigError("an alias refers to a node that contains it: the nesting is infinite", where=where)
            self._add(*self._sizes[id(node)], where)
            return node
        before, length = self._total, self.characters
        self._add(1, 0, where)
        self._depth += 1
        if self._depth > YAML_DEPTH + 1:
            raise ConfigError(_TOO_DEEP, where=where)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(node, yaml.ScalarNode):
            self._add(0, len(node.value), where)
        self._sizes[id(node)] = self._total - before, self.characters - length
        return node

    def _add(self, count: int, characters: int, where: str) -> None:
        self._total += count
        self.characters += characters
        if self.characters > self._longest:
            what = "takes, with every alias expanded, at least"
            YAML_BYTES.check(self.characters, what, where=where, error=ConfigError)
        if self._total > self._most:
            YAML_NODES.check(self._total, "has, with every alias expanded, at least", where=where, error=ConfigError)


def _build(node: yaml.Node, path: KeyPath, name: str, lines: dict[KeyPath, int]) -> Any:
    where = f"{name}:{node.start_mark.line + 1}"
    if len(path) > YAML_DEPTH:
        raise ConfigError(_TOO_DEEP, where=where)
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.ScalarNode):
        try:
            node.value.encode("utf-8")
            return parse_scalar(node.value) if node.style is None else node.value
        except UnicodeEncodeError as error:
            raise ConfigError("an escape sequence is half of a surrogate pair", where=where) from error
        except ConfigError as error:
            raise ConfigError(error.what, where=where, hint=error.hint) from error
    if isinstance(node, yaml.SequenceNode):
        return [_build(item, (*path, i), name, lines) for i, item in enumerate(node.value)]
    assert isinstance(node, yaml.MappingNode)
    found: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise ConfigError("a key must be a plain string", where=f"{name}:{line}")
        key = str(key_node.value)
        below: KeyPath = (*path, key)
        if key in found:
            first = lines[below]
            what = f"the key {key[:60]!r} is a duplicate (first in line {first})"
            raise ConfigError(what, where=f"{name}:{line}")
        lines[below] = line
        found[key] = _build(value_node, below, name, lines)
    return found


def parse_yaml(text: str, name: str) -> YamlText:
    """Parse one YAML document.

    Raises:
        ConfigError: not YAML, more than one document, a duplicate key, or larger than the limits; with the line.
    """
    lines: dict[KeyPath, int] = {}
    try:
        loader = _CountingLoader(text, name)
        node = loader.get_single_node()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        where = name if mark is None else f"{name}:{mark.line + 1}"
        raise ConfigError(f"is not YAML ({getattr(error, 'problem', None) or error})", where=where) from error
    return YamlText(name, None if node is None else _build(node, (), name, lines), lines, loader.characters)


def read_yaml(path: PathLike) -> YamlText:
    """Read a YAML file; see `parse_yaml` and `expunge.core.files.read_text`."""
    text = read_text(path, YAML_BYTES, error=ConfigError)
    return parse_yaml(text, str(path))


def parse_value(text: str, name: str) -> Any:
    """Parse the value of a `key=value` argument on the command line."""
    return parse_yaml(text, name).value
