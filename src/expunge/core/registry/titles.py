"""The names of models and data sources in reports: the fact `title` of their decorator, or a readable fallback."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from expunge.core.errors import ExpungeError

from .registry import Registry, is_reference

#: Options of a source that name the data themselves, in this order.
_PLACES = ("path", "file", "folder", "factory")


def find_title(registry: Registry[Any], name: str, options: Mapping[str, Any] | None = None) -> str:
    """Find the title of a registered entry. Imports nothing.

    Args:
        registry: `MODELS` or `SOURCES`.
        name: a name, `package.module:name`, or any other string.
        options: those of the entry. If it has no title, the file that they name is the title; that of a registered
            entry, if the file is called like it.

    Returns:
        The title; else the name of the file, the last part of `package.module:name`, or the name.

    Example:
        >>> from expunge.core.registry import MODELS, SOURCES
        >>> find_title(MODELS, "small-cnn"), find_title(MODELS, "nets:TinyNet")
        ('Small CNN', 'TinyNet')
        >>> find_title(SOURCES, "npz", {"path": "data/fashion_mnist.npz"})
        'Fashion-MNIST'
        >>> find_title(SOURCES, "table", {"path": "data/visits.csv"})
        'visits.csv'
    """
    title = _read_title(registry, name)
    if title:
        return title
    for key in _PLACES:
        value = (options or {}).get(key)
        if isinstance(value, str) and (last := _find_last_part(value)):
            return _find_same_file(registry, _fold(PurePath(last).stem)) or last
    return name.rpartition(":")[2] if is_reference(name) else name


def _read_title(registry: Registry[Any], name: str) -> str:
    try:
        known = name in registry and not is_reference(name)
        title = registry.describe(name).facts.get("title", "") if known else ""
    except ExpungeError:  # a plug-in whose source cannot be read, or of a name that two packages have
        return ""
    return title if isinstance(title, str) else ""


def _find_same_file(registry: Registry[Any], stem: str) -> str:
    """The title of the entry with that name, unless its data are part of a package; else empty."""
    for name in registry.names():
        if _fold(name) == stem:
            definition = registry.read_definition(name)
            of_package = definition is not None and "package" in definition.facts
            return "" if of_package else _read_title(registry, name)
    return ""


def _find_last_part(value: str) -> str:
    return value.rpartition(":")[2] if is_reference(value) else PurePath(value.replace("\\", "/")).name


def _fold(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())
