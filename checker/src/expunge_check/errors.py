"""Refusals, and the one way in which anything from a file becomes printed text."""

from __future__ import annotations

import contextlib
import unicodedata
from collections.abc import Iterator
from typing import Any

#: Largest number of characters of a printed line, and of a value that a line quotes.
LINE, VALUE = 1000, 100


class BadCertificate(Exception):
    """The folder does not hold what a certificate must hold; nothing in it is certified."""


class TooLarge(BadCertificate):
    """Checking the folder would take more memory or work than the limits allow; nothing was computed."""


#: What damaged or hostile files make Python raise while they are read and computed with: missing entries, other types,
#: divisions by zero and overflows (also of fractions), nesting without end, arrays beyond the memory.
MALFORMED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError, MemoryError)


@contextlib.contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turn what damaged files make Python raise into `BadCertificate`: a traceback is no verdict."""
    try:
        yield
    except MALFORMED as error:
        found = shown(str(error)) if isinstance(error, LookupError) else printable(str(error), VALUE)
        raise BadCertificate(f"{what}: {type(error).__name__} ({found})") from error


def is_printable(text: str) -> bool:
    """Whether a terminal shows the text as it is: no control, format, bidirectional or unassigned characters."""
    return (text.isascii() and text.isprintable()) or not any(map(_hidden, text))


def printable(text: str, most: int = LINE) -> str:
    """The text on one line: what moves the cursor, hides or reorders characters becomes an escape; long text is cut.

    Args:
        text: anything, also from a file.
        most: characters that are kept.
    """
    rest = len(text) - most
    if rest > 0:
        text = f"{text[:most]}... ({rest} more characters)"
    return text if is_printable(text) else "".join(_escaped(c) if _hidden(c) else c for c in text)


def shown(value: Any) -> str:
    """A value of a file inside a message: quoted, cut, and in one word, so that it cannot pose as a line of output."""
    text = value if isinstance(value, str) else repr(value)[: 2 * VALUE]
    text = printable(text, VALUE)
    return f"'{text}'".replace(" ", "\\x20") if isinstance(value, str) else text


def _hidden(character: str) -> bool:
    return not character.isprintable() or unicodedata.bidirectional(character) in ("R", "AL", "AN")


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
