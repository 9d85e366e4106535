"""Errors, and the escaping of text from files before it is printed."""

from __future__ import annotations

import contextlib
import unicodedata
from collections.abc import Iterator
from typing import Any

#: Maximum length of a printed line, and of a quoted value.
LINE, VALUE = 1000, 100


#: Characters that are shown as nothing or as a space though they count as letters, marks or symbols: fillers, an empty
#: Braille cell, joiners. Variation selectors are the ranges in `_hidden`.
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0")


class BadCertificate(Exception):
    """The folder is not a valid certificate; nothing in it is certified."""


class TooLarge(BadCertificate):
    """The check would exceed a limit of memory or work; nothing was computed."""


#: Exceptions that damaged or malicious files may cause: missing entries, other types, divisions by zero, overflows (of
#: fractions too), unlimited nesting, arrays that exceed the memory.
MALFORMED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError, MemoryError)


@contextlib.contextmanager
def reject_malformed(what: str) -> Iterator[None]:
    """Convert exceptions that damaged files cause into `BadCertificate`, so the check never ends in a traceback."""
    try:
        yield
    except MALFORMED as error:
        found = quote(str(error)) if isinstance(error, LookupError) else escape(str(error), VALUE)
        raise BadCertificate(f"{what}: {type(error).__name__} ({found})") from error


def is_printable(text: str) -> bool:
    """Return whether the text has no control, format, right-to-left or unassigned characters."""
    return (text.isascii() and text.isprintable()) or not any(map(_hidden, text))


def escape(text: str, most: int = LINE) -> str:
    """Return the text on one line, truncated, with characters that are hidden or move the cursor as escape sequences.

    Args:
        text: any text, also from a file.
        most: maximum number of characters.
    """
    rest = len(text) - most
    if rest > 0:
        text = f"{text[:most]}... ({rest} more characters)"
    return text if is_printable(text) else "".join(_escaped(c) if _hidden(c) else c for c in text)


def quote(value: Any) -> str:
    """Return a value from a file for a message: quoted, truncated and without spaces, so it cannot imitate output."""
    text = value if isinstance(value, str) else repr(value)[: 2 * VALUE]
    text = escape(text, VALUE)
    return f"'{text}'".replace(" ", "\\x20") if isinstance(value, str) else text


def _hidden(character: str) -> bool:
    blank = character in _BLANK or 0xFE00 <= ord(character) <= 0xFE0F or 0xE0100 <= ord(character) <= 0xE01EF
    return blank or not character.isprintable() or unicodedata.bidirectional(character) in ("R", "AL", "AN")


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
