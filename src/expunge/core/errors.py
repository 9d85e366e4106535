"""Errors that speak to the user: what was wrong, where, and what would be right; and text made fit for a terminal."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable

_JOINERS = "\u200c\u200d"  # part of words and of symbols in many scripts; they move nothing
_SUSPECT = re.compile(r"[^\x20-\x7e]")


def _shown(found: re.Match[str]) -> str:
    character = found.group()
    if character in _JOINERS or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def printable(text: str, *, lines: bool = True) -> str:
    """The text with control, formatting (bidirectional, invisible) and surrogate characters as `\\x1b`, `\\u202e`.

    Args:
        text: any text.
        lines: keep line feeds and tabs, for text that is made of lines; not for a name or an id.
    """
    if not lines:
        return _SUSPECT.sub(_shown, text)
    return re.sub(r"[^\x20-\x7e\n\t]", _shown, text)


class ExpungeError(Exception):
    """Base of every error that a user can cause and can mend.

    Args:
        what: one sentence that says what was wrong.
        where: the file, line, key or record id in question.
        hint: what would be right.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: object | None = None, hint: str | None = None) -> None:
        self.what = what
        self.where = None if where is None else str(where)
        self.hint = hint
        super().__init__(str(self))

    def __str__(self) -> str:
        what = printable(self.what)
        text = what if self.where is None else f"{printable(self.where, lines=False)}: {what}"
        return text if self.hint is None else f"{text}\n  hint: {printable(self.hint)}"


class ConfigError(ExpungeError):
    """A configuration file, a plan or an option is wrong."""


class TrustError(ExpungeError):
    """A file names code that the owner has not agreed to run, or that is never run for a name."""


class DataError(ExpungeError):
    """Records cannot be read, or hold values that no method can use."""


class RequestError(ExpungeError):
    """A forget request cannot be carried out as it stands."""


class ModelError(ExpungeError):
    """A model or its weights do not fit what was asked of them."""


class MaskError(ExpungeError):
    """A mask does not fit its model, or cannot be made as asked."""


class MethodError(ExpungeError):
    """A method is unknown, or lacks what it needs."""


class FileError(ExpungeError):
    """A file is missing, damaged, of another format, or cannot be written."""


class TrainingError(ExpungeError):
    """Training left the finite numbers or cannot go on."""


class Interrupted(ExpungeError):
    """The user stopped the work; what was finished is kept and the same command resumes it."""

    exit_code = 130


def nearest(name: object, known: Iterable[str]) -> str | None:
    """The known name closest to `name` (case is ignored), or None where nothing is close, or it is no text."""
    if not isinstance(name, str):
        return None
    by_fold = {k.casefold(): k for k in known}
    hits = difflib.get_close_matches(name.casefold(), list(by_fold), n=1, cutoff=0.5)
    return by_fold[hits[0]] if hits else None


def unknown_name_hint(name: object, known: Iterable[str]) -> str:
    """A hint for an unknown name: the nearest one, then all there are."""
    names = sorted(known)
    close = nearest(name, names)
    listing = "known: " + ", ".join(names) if names else "none are registered"
    return listing if close is None else f"did you mean {close!r}? ({listing})"
