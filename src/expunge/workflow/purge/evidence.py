"""What files say about records: the parts of a split, and record ids in text. No model is read."""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from expunge.core.errors import DataError, FileError
from expunge.core.reading.limits import TEXT_BYTES
from expunge.core.split import Split

#: Files that are searched for record ids.
TEXT_SUFFIXES = (".json", ".html", ".txt", ".csv", ".tsv", ".md", ".yaml", ".yml", ".log", ".err", ".jsonl")
#: Parts of a split, and the status of an artefact that has a record in it.
_STATUS_OF = {
    "retain": "trained", "forget": "forgotten", "validation": "evaluated", "test": "evaluated",
    "non_members": "evaluated",
}  # fmt: skip
_TOKEN = re.compile(r"[^\s\"'<>,;()\[\]{}|=]+")


class Wanted:
    """The record ids that are searched for, and those of them that were found somewhere.

    Args:
        ids: the ids.
    """

    def __init__(self, ids: Sequence[str]) -> None:
        self.ids = frozenset(ids)
        self._seen: set[str] = set()
        self._array = np.asarray(sorted(self.ids), dtype=np.str_)
        odd = [name for name in self.ids if _TOKEN.fullmatch(name) is None]
        self._odd = re.compile("|".join(map(re.escape, sorted(odd, key=len, reverse=True)))) if odd else None

    def __len__(self) -> int:
        return len(self.ids)

    def count_in(self, names: np.ndarray) -> int:
        """How many of the ids are among the names."""
        found = self._array[np.isin(self._array, names)]
        self._seen.update(found.tolist())
        return len(found)

    def list_unseen(self) -> tuple[str, ...]:
        """The ids that nothing had so far, sorted."""
        return tuple(sorted(self.ids - self._seen))

    def find_in_text(self, text: str) -> set[str]:
        """The ids that occur in a text, each as a whole word."""
        text = html.unescape(text)
        found = set()
        for token in set(_TOKEN.findall(text)):
            for form in (token, token.rstrip(".:"), token.split("/")[-1]):
                if form in self.ids:
                    found.add(form)
        if self._odd is not None:
            found |= set(self._odd.findall(text))
        self._seen |= found
        return found

    def find_in_json(self, value: Any) -> set[str]:
        """The ids among the keys and strings of a JSON value, or as words in them."""
        found: set[str] = set()
        for text in _iterate_strings(value):
            if text in self.ids:
                found.add(text)
                self._seen.add(text)
            elif len(text) > 1 and not text.isalnum():
                found |= self.find_in_text(text)
        return found


def _iterate_strings(value: Any) -> Iterator[str]:
    pending = [value]
    while pending:
        at = pending.pop()
        if isinstance(at, str):
            yield at
        elif isinstance(at, dict):
            pending += [*at.keys(), *at.values()]
        elif isinstance(at, list):
            pending += at


def read_split_evidence(path: Path, wanted: Wanted) -> tuple[str, str, int] | None:
    """The status, the reason and the number of records that a split.json gives; None: it has none of the records.

    Raises:
        FileError: it is missing or damaged.
        DataError: it is not a split, or was edited.
    """
    split = Split.load(path)
    counts = {part: wanted.count_in(getattr(split, part)) for part in _STATUS_OF}
    counts = {part: count for part, count in counts.items() if count}
    if not counts:
        return None
    first = next(iter(counts))
    listed = ", ".join(f"{count} in {part.replace('_', '-')}" for part, count in counts.items())
    return _STATUS_OF[first], f"its split has {listed}", sum(counts.values())


def find_named(path: Path, wanted: Wanted) -> set[str] | None:
    """The ids that a text file names; None: it cannot be read, or is too large (`EXPUNGE_MAX_TEXT_BYTES`).

    A JSON file is parsed, so that ids with escaped characters are found.
    """
    try:
        if path.stat().st_size > TEXT_BYTES.value():
            return None
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    if path.suffix == ".json":
        try:
            return wanted.find_in_json(json.loads(text))
        except (ValueError, RecursionError):  # not JSON: as text
            pass
    return wanted.find_in_text(text)


def read_body(path: Path) -> dict[str, Any]:
    """The JSON object of a file; empty if it is none."""
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def judge_directory(directory: Path, wanted: Wanted) -> tuple[str, str, int] | None:
    """Status, reason and number of records by what the files of a directory record themselves; None: nothing.

    The splits count first, those of its direct children included; then the ids that its JSON files name.
    """
    order = list(_STATUS_OF.values())
    best: tuple[str, str, int] | None = None
    names: set[str] = set()
    unread: list[str] = []
    for path in list_files(directory):
        if path.name == "split.json":
            try:
                found = read_split_evidence(path, wanted)
            except (FileError, DataError):
                found = None
                text = find_named(path, wanted)
                if text:
                    found = "trained", "its split.json is damaged, and names them", len(text)
                elif text is None or not path.stat().st_size:
                    unread.append(path.name)
            if found is not None and (best is None or order.index(found[0]) < order.index(best[0])):
                best = found
        elif path.suffix in TEXT_SUFFIXES:
            named = find_named(path, wanted)
            names |= named or set()
            unread += [path.name] if named is None else []
    if best is None and names:
        return "names", "its files name them", len(names)
    if best is None and unread:
        return "unknown", f"{unread[0]} cannot be read", 0
    return best


def list_files(directory: Path, skip: Callable[[Path], bool] = lambda path: False) -> list[Path]:
    """The regular files below a directory, sorted; symbolic links are not followed."""
    found = []
    for at, names, files in os.walk(directory, followlinks=False):
        names[:] = sorted(name for name in names if not skip(Path(at, name)) and not Path(at, name).is_symlink())
        paths = (Path(at, name) for name in files)
        found += [path for path in paths if path.is_file() and not path.is_symlink()]  # a pipe would block
    return sorted(found)


def measure(path: Path) -> int:
    """Bytes of a file, or of the files below a directory."""
    files = [path] if path.is_file() else list_files(path)
    total = 0
    for file in files:
        try:
            total += file.lstat().st_size
        except OSError:
            continue
    return total
