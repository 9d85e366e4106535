"""Errors that speak to the user: what was wrong, where, and what would be right; and text made fit for a terminal."""

from __future__ import annotations

import difflib
import itertools
import re
import unicodedata
from collections.abc import Iterable, Sequence

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

    Parts of more than 2,000 characters are cut.

    Args:
        what: one sentence that says what was wrong.
        where: the file, line, key or record id in question.
        hint: what would be right.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: object | None = None, hint: str | None = None) -> None:
        self.what = _cut(what)
        self.where = None if where is None else _cut(str(where))
        self.hint = None if hint is None else _cut(hint)
        super().__init__(str(self))

    def __str__(self) -> str:
        what = printable(self.what)
        text = what if self.where is None else f"{printable(self.where, lines=False)}: {what}"
        return text if self.hint is None else f"{text}\n  hint: {printable(self.hint)}"


#: Characters of each part of a message: what is quoted in it may come from a file.
_LONGEST = 2_000


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... ({len(text):,} characters)"


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


#: Names that are compared and listed in a message, and the characters of one: a file may hold any number of them.
_NAMES, _LISTED, _LETTERS = 1_000, 60, 100


def nearest(name: object, known: Iterable[str]) -> str | None:
    """The known name closest to `name` (case is ignored), or None where nothing is close, or it is not a string."""
    if not isinstance(name, str) or len(name) > _LETTERS:
        return None
    by_fold = {k.casefold(): k for k in itertools.islice(known, _NAMES) if len(k) <= _LETTERS}
    hits = difflib.get_close_matches(name.casefold(), list(by_fold), n=1, cutoff=0.5)
    return by_fold[hits[0]] if hits else None


def unknown_name_hint(name: object, known: Iterable[str]) -> str:
    """A hint for an unknown name: the nearest one, then all there are."""
    names = sorted(known)
    close = nearest(name, names)
    listing = "known: " + listed(names) if names else "none are registered"
    return listing if close is None else f"did you mean {close!r}? ({listing})"


def listed(names: Sequence[str]) -> str:
    """Names with commas between them; of many or long ones the first and the count of the others."""
    shown = ", ".join(name if len(name) <= _LETTERS else f"{name[:_LETTERS]}..." for name in names[:_LISTED])
    return shown if len(names) <= _LISTED else f"{shown} and {len(names) - _LISTED} more"
