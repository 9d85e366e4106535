"""Values in few characters: strings are escaped, arrays become their shape, long collections their first items."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from pathlib import PurePath
from typing import Any

from expunge.core.errors import printable

#: Characters of one value, and of all fields of one object.
VALUE, FIELDS = 100, 700
#: A collection of more items is shown by its first ones.
_ITEMS, _FIRST = 8, 3
#: Nested collections and objects below this depth are counted, not shown.
_DEPTH = 2
_BITS = 200
#: Words of names of values that identify records or persons: such values are counted, never shown.
_PERSONAL = frozenset({"id", "ids", "subjects", "hold"})


def plural(count: int, noun: str) -> str:
    """`count` with a noun in singular or plural, as in `1 record` or `1,797 records`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def truncate(text: str, limit: int = VALUE) -> str:
    """Escape a text for one line, and cut it to `limit` characters."""
    text = printable(text[: limit + 1], lines=False)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def show_shape(shape: Iterable[int]) -> str:
    """The shape of one record, as in `3 x 32 x 32`, or `54 features`."""
    sizes = [str(size) for size in shape]
    return truncate(" x ".join(sizes) + " features" * (len(sizes) == 1)) or "one number"


def shorten_names(names: Iterable[Any], most: int = _ITEMS) -> str:
    """Names joined by commas, or `none`; beyond `most` the rest is counted."""
    names = list(names)
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(truncate(str(name), 40) for name in names[:most]) + more or "none"


def shorten_mapping(values: Mapping[Any, Any], limit: int = VALUE) -> str:
    """Options and their values, as in `epochs 2, learning_rate 0.01`; values of subjects or ids are counted."""
    shown = (f"{truncate(str(key), 40)} {_named(key, value, 1)}" for key, value in values.items())
    return truncate(", ".join(shown), limit)


def repr_fields(self: Any) -> str:
    """The `repr` of a dataclass with short values; fields that do not fit are counted."""
    return _show_fields(self, _DEPTH, FIELDS)


def _show_fields(of: Any, depth: int, limit: int) -> str:
    shown: list[str] = []
    fields = [field.name for field in dataclasses.fields(of) if field.repr]
    for name in fields:
        shown.append(f"{name}={_attribute(of, name, depth)}")
        if sum(map(len, shown)) > limit:
            shown[-1] = f"... {plural(len(fields) - len(shown) + 1, 'more field')}"
            break
    return f"{type(of).__qualname__}({', '.join(shown)})"


def _attribute(of: Any, name: str, depth: int) -> str:
    try:
        return _named(name, getattr(of, name), depth)
    except AttributeError:
        return "<not set>"
    except Exception as error:
        return f"<{type(error).__name__}>"


def _named(name: Any, value: Any, depth: int) -> str:
    """The value under a name; the names of records and persons decide that it is only counted."""
    personal = not _PERSONAL.isdisjoint(str(name)[:VALUE].split("_"))
    if personal and isinstance(value, Sequence | Set | Mapping) and not isinstance(value, str):
        return f"<{plural(len(value), 'item')}>"
    return shorten(value, depth)


def shorten(value: Any, depth: int = _DEPTH) -> str:
    """A value in at most 100 characters; numbers and short strings as `repr` has them.

    Args:
        value: anything; an unknown object is shown by the name of its type, since its own `repr` can be long.
        depth: collections and objects nested deeper are counted.

    Example:
        >>> shorten({"rate": 0.1, "names": ["a", "b"]}), shorten(list(range(1000)))
        ("{'rate': 0.1, 'names': ['a', 'b']}", '[0, 1, 2, ... 1,000 items]')
    """
    try:
        return truncate(_shorten(value, depth))
    except Exception as error:
        return f"<{type(value).__name__}: {type(error).__name__}>"


def _shorten(value: Any, depth: int) -> str:
    if value is None or isinstance(value, bool | complex | range):
        return repr(value)
    if isinstance(value, float):
        return float.__repr__(value)  # of a numpy number too
    if isinstance(value, int):
        return int.__repr__(value) if value.bit_length() <= _BITS else f"<integer of {value.bit_length():,} bits>"
    if isinstance(value, str):
        shown = str.__repr__(value[:VALUE])
        return shown if len(shown) <= VALUE and len(value) <= VALUE else f"{shown[: VALUE - 4]}...{shown[-1]}"
    if isinstance(value, bytes | bytearray):
        return f"<{len(value):,} bytes>"
    if isinstance(value, PurePath):
        return repr(value)
    if isinstance(value, type | types.FunctionType | types.MethodType | types.BuiltinFunctionType):
        return f"<{value.__qualname__}>"
    for known, show in _KINDS:
        if isinstance(value, known):
            return show(value, depth)
    if hasattr(value, "shape") and hasattr(value, "dtype"):  # arrays and tensors, without an import of torch
        scalar = type(value).__module__ == "numpy" and value.shape == ()
        return repr(value.item()) if scalar else f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if (type(value).__module__, type(value).__name__) in (("torch", "device"), ("torch", "dtype")):
        return repr(value)
    if hasattr(value, "_summarise"):
        first = repr(value).split("\n", 1)[0]
        return first if first.startswith("<") else f"<{first}>"
    if dataclasses.is_dataclass(value):
        return _show_fields(value, depth - 1, VALUE) if depth > 0 else f"{type(value).__qualname__}(...)"
    return f"<{type(value).__name__}>"


def _show_mapping(value: Mapping[Any, Any], depth: int) -> str:
    if depth <= 0 and value:
        return f"{{... {len(value):,} entries}}"
    items = [f"{shorten(k, 0)}: {_named(k, v, depth - 1)}" for k, v in _first(value.items(), len(value))]
    return f"{{{_join(items, len(value), 'entries')}}}"


def _show_sequence(value: Sequence[Any], depth: int) -> str:
    opening, closing = "()" if isinstance(value, tuple) else "[]"
    if depth <= 0 and value:
        return f"{opening}... {plural(len(value), 'item')}{closing}"
    items = [shorten(item, depth - 1) for item in _first(value, len(value))]
    comma = "," if isinstance(value, tuple) and len(value) == 1 else ""
    return f"{opening}{_join(items, len(value), 'items')}{comma}{closing}"


def _show_set(value: Set[Any], depth: int) -> str:
    return f"{{{shorten_names(sorted(map(str, value)))}}}" if len(value) <= _ITEMS else f"<{len(value):,} items>"


def _first(items: Iterable[Any], count: int) -> list[Any]:
    most = count if count <= _ITEMS else _FIRST
    return [item for item, _ in zip(items, range(most), strict=False)]


def _join(items: Sequence[str], count: int, noun: str) -> str:
    return ", ".join(items) if count <= len(items) else f"{', '.join(items)}, ... {count:,} {noun}"


_KINDS: tuple[tuple[Any, Callable[[Any, int], str]], ...] = (
    (Mapping, _show_mapping),
    (list | tuple, _show_sequence),
    (Set, _show_set),
)
