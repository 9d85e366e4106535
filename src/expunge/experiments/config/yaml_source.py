"""YAML that remembers where every key stands, so that an error can name file and line.

Scalars follow YAML 1.2: `1e-4` is a number, `on` and `no` are texts. A key that stands twice is an error. Only plain
values are built (no tags, no objects).
"""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import yaml

from expunge.core.errors import ConfigError
from expunge.core.files import PathLike

KeyPath = tuple[str | int, ...]

_INT = re.compile(r"[-+]?[0-9]+\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
_WORDS: dict[str, Any] = {"true": True, "false": False, "null": None, "~": None, "": None}
_DEEPEST = 40
_INFINITE = re.compile(r"[-+]?\.inf\Z", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class YamlText:
    """A parsed YAML text.

    Attributes:
        name: the file, or what else the text came from.
        value: plain values: dictionaries, lists, texts, numbers, booleans, None.
        lines: the line (from 1) of every key and item, by its path from the root.
    """

    name: str
    value: Any
    lines: dict[KeyPath, int]

    def where(self, path: KeyPath) -> str:
        """`file:line` of a path, or of the nearest thing above it."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.lines:
                return f"{self.name}:{self.lines[path[:length]]}"
        return self.name


def scalar(text: str) -> Any:
    """The value of a plain (unquoted) scalar."""
    word = text.lower() if text in (text.lower(), text.capitalize(), text.upper()) else text
    if word in _WORDS:
        return _WORDS[word]
    if _INT.match(text):
        return int(text)
    if _FLOAT.match(text):
        return float(text)
    if _INFINITE.match(text):
        return -math.inf if text.startswith("-") else math.inf
    if word == ".nan":
        return math.nan
    return text


def _build(node: yaml.Node, path: KeyPath, name: str, lines: dict[KeyPath, int]) -> Any:
    if len(path) > _DEEPEST:
        raise ConfigError("is nested without end", where=f"{name}:{node.start_mark.line + 1}")
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.ScalarNode):
        return scalar(node.value) if node.style is None else node.value
    if isinstance(node, yaml.SequenceNode):
        return [_build(item, (*path, i), name, lines) for i, item in enumerate(node.value)]
    assert isinstance(node, yaml.MappingNode)
    found: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise ConfigError("a key must be a plain text", where=f"{name}:{line}")
        key = str(key_node.value)
        below: KeyPath = (*path, key)
        if key in found:
            first = lines[below]
            raise ConfigError(f"the key {key!r} stands twice (first in line {first})", where=f"{name}:{line}")
        lines[below] = line
        found[key] = _build(value_node, below, name, lines)
    return found


def parse_yaml(text: str, name: str) -> YamlText:
    """Parse one YAML document.

    Raises:
        ConfigError: not YAML, more than one document, or a key twice; with the line.
    """
    lines: dict[KeyPath, int] = {}
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        where = name if mark is None else f"{name}:{mark.line + 1}"
        raise ConfigError(f"is not YAML ({getattr(error, 'problem', None) or error})", where=where) from error
    return YamlText(name, None if node is None else _build(node, (), name, lines), lines)


def read_yaml(path: PathLike) -> YamlText:
    """Read a YAML file; see `parse_yaml`."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError("no such file", where=path) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read ({error})", where=path) from error
    return parse_yaml(text, str(path))


def parse_value(text: str, name: str) -> Any:
    """The value of a short YAML text, as in `key=value` on a command line."""
    return parse_yaml(text, name).value
