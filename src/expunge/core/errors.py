"""Errors that a user can cause: what was wrong, where, and how to fix it. Text is escaped for terminals."""

from __future__ import annotations

import difflib
import functools
import inspect
import itertools
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")
_C = TypeVar("_C", bound=type)

#: Characters that are drawn as nothing or as a blank, but are letters, marks or symbols by category: from the property
#: Default_Ignorable_Code_Point of Unicode 15.1 (DerivedCoreProperties.txt), and U+2800, the empty Braille pattern.
#: Those of category Cf (soft hyphen, bidirectional controls, tags) and private use (Co) are found by category.
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u2800\u3164\ufe00-\ufe0f\uffa0\ufff0-\ufff8"
    "\U000e0000-\U000e0fff]"
)
_SUSPECT = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
_JOINERS = "\u200c\u200d"  # part of words and of symbols in many scripts; they do not reorder text
_NOT_ASCII = re.compile(r"[^\x20-\x7e]")


def _escape(found: re.Match[str]) -> str:
    character = found.group()
    suspect = unicodedata.category(character) in _SUSPECT or _INVISIBLE.match(character)
    if character in _JOINERS or not suspect:
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def printable(text: str, *, lines: bool = True) -> str:
    """Escape control, formatting, invisible, private-use and surrogate characters, as in `\\x1b` or `\\u202e`.

    Args:
        text: any string.
        lines: keep line feeds and tabs; False for a name or an id.
    """
    if not lines:
        return _NOT_ASCII.sub(_escape, text)
    return re.sub(r"[^\x20-\x7e\n\t]", _escape, text)


class ExpungeError(Exception):
    """Base of every error that a user can cause and fix.

    Each part is truncated to 2,000 characters.

    Args:
        what: one sentence about what was wrong.
        where: the file, line, key or record id in question.
        hint: how to fix it.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: object | None = None, hint: str | None = None) -> None:
        self.what = _truncate(what)
        self.where = None if where is None else _truncate(str(where))
        self.hint = None if hint is None else _truncate(hint)
        super().__init__(str(self))

    def __str__(self) -> str:
        what = printable(self.what)
        text = what if self.where is None else f"{printable(self.where, lines=False)}: {what}"
        return text if self.hint is None else f"{text}\n  hint: {printable(self.hint)}"


#: Characters of each part of a message; a part may quote a file.
_LONGEST = 2_000


def _truncate(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... ({len(text):,} characters)"


class ExpungeWarning(UserWarning):
    """Something that works, and may not be what the user means: a value that was assumed or converted."""


class ConfigError(ExpungeError):
    """A configuration file, a plan or an option is wrong."""


class TrustError(ExpungeError):
    """A file names code that the owner has not agreed to run, or that is never run because a file names it."""


class DataError(ExpungeError):
    """Records cannot be read, or contain values that no method can use."""


class ChangedDataError(DataError):
    """The data differ from those that earlier stages have read; the stored stage that read them is dropped."""


class RequestError(ExpungeError):
    """A forget request is invalid for the records and the split."""


class ModelError(ExpungeError):
    """A model or its weights do not fit the task."""


class MaskError(ExpungeError):
    """A mask does not fit its model, or cannot be built."""


class MethodError(ExpungeError):
    """A method is unknown, or an input that it needs is missing."""


class FileError(ExpungeError):
    """A file is missing, damaged, of another format, or cannot be written."""


class StoreError(FileError):
    """The store of completed stages cannot be reached, read or written."""

    #: Whether another try may succeed: a connection was lost. A full disk or a missing right stays.
    transient = False


class TrainingError(ExpungeError):
    """Training produced NaN or infinite values, or cannot continue."""


class Interrupted(ExpungeError):
    """The user interrupted the run; finished stages are stored, and the same command resumes."""

    exit_code = 130


#: Limits for names in messages, since a file may contain any number of them: how many are compared, how many are
#: listed, and the characters of one.
_NAMES, _LISTED, _LETTERS = 1_000, 60, 100


def find_nearest_name(name: object, known: Iterable[str], *, cutoff: float = 0.5) -> str | None:
    """Find the known name closest to `name`; case is ignored.

    Args:
        name: what was given.
        known: the names to compare with.
        cutoff: the least similarity (`difflib`), from 0 to 1; ids that are made alike resemble each other without being
            meant.

    Returns:
        None if none is close enough, or `name` is not a string.
    """
    if not isinstance(name, str) or len(name) > _LETTERS:
        return None
    by_fold = {k.casefold(): k for k in itertools.islice(known, _NAMES) if len(k) <= _LETTERS}
    hits = difflib.get_close_matches(name.casefold(), list(by_fold), n=1, cutoff=cutoff)
    return by_fold[hits[0]] if hits else None


def unknown_name_hint(name: object, known: Iterable[str]) -> str:
    """The hint of an error about an unknown name: the nearest known name, then all known names."""
    names = sorted(known)
    close = find_nearest_name(name, names)
    listing = "known: " + join_names(names) if names else "none are registered"
    return listing if close is None else f"did you mean {close!r}? ({listing})"


def join_names(names: Sequence[str]) -> str:
    """Join names with commas; long names are truncated, and beyond 60 names the rest is counted."""
    shown = ", ".join(name if len(name) <= _LETTERS else f"{name[:_LETTERS]}..." for name in names[:_LISTED])
    return shown if len(names) <= _LISTED else f"{shown} and {len(names) - _LISTED} more"


#: Words that start with a vowel but are spoken with a consonant: a uint8, a user, a UTF-8 text.
_CONSONANT = re.compile(r"(uint|uni(?!n)|use|usu|ut[fi]|url|eu|one)", re.IGNORECASE)


def with_article(noun: str) -> str:
    """Return a noun with its indefinite article, for messages that name a type or a kind.

    Args:
        noun: the noun; its first letters decide.

    >>> [with_article(noun) for noun in ("int", "list", "OrderedDict", "uint8", "un-pruning rule")]
    ['an int', 'a list', 'an OrderedDict', 'a uint8', 'an un-pruning rule']
    """
    is_vowel = noun[:1].casefold() in ("a", "e", "i", "o", "u") and not _CONSONANT.match(noun)
    return f"{'an' if is_vowel or noun.startswith('ndarray') else 'a'} {noun}"


def check_type(value: object, kind: type | tuple[type, ...], where: str, hint: str) -> None:
    """Raise ConfigError if an argument has another type.

    Args:
        value: the argument.
        kind: the type or types that it may have.
        where: its name.
        hint: what to write.

    >>> check_type("cpu", int, "workers", "workers=2")
    Traceback (most recent call last):
        ...
    expunge.core.errors.ConfigError: workers: is a str
      hint: workers=2
    """
    if not isinstance(value, kind):
        raise ConfigError(f"is {with_article(type(value).__name__)}", where=where, hint=hint)


def name_arguments(noun: str) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Make a function raise ConfigError, with the nearest name, where Python has a bare TypeError for a keyword.

    The call has one frame more on the stack, which `stacklevel` of warnings has to count.

    Args:
        noun: the function in the message.

    >>> @name_arguments("the function half")
    ... def half(number):
    ...     return number / 2
    >>> half(numbre=4)
    Traceback (most recent call last):
        ...
    expunge.core.errors.ConfigError: the function half has no argument 'numbre'
      hint: did you mean 'number'? (known: number)
    """

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        known = list(inspect.signature(function).parameters)

        @functools.wraps(function)
        def call(*args: _P.args, **given: _P.kwargs) -> _R:
            _check_keywords(given, known, f"{noun} has no argument")
            return function(*args, **given)

        return call

    return decorate


def name_fields(noun: str) -> Callable[[_C], _C]:
    """Make a dataclass raise ConfigError, with the nearest name, for a keyword that is not one of its fields.

    Args:
        noun: an object of the class in the message.

    >>> import dataclasses
    >>> @name_fields("a box")
    ... @dataclasses.dataclass
    ... class Box:
    ...     width: int = 1
    >>> Box(widht=2)
    Traceback (most recent call last):
        ...
    expunge.core.errors.ConfigError: a box has no field 'widht'
      hint: did you mean 'width'? (known: width)
    """

    def decorate(kind: _C) -> _C:
        make: Callable[..., None] = vars(kind)["__init__"]
        known = list(inspect.signature(make).parameters)[1:]

        @functools.wraps(make)
        def construct(self: Any, *args: Any, **given: Any) -> None:
            _check_keywords(given, known, f"{noun} has no field")
            make(self, *args, **given)

        setattr(kind, "__init__", construct)  # noqa: B010 - mypy refuses an assignment to a method
        return kind

    return decorate


def _check_keywords(given: Iterable[str], known: Sequence[str], what: str) -> None:
    for name in given:
        if name not in known:
            raise ConfigError(f"{what} {name!r}", hint=unknown_name_hint(name, known))
