"""Sizes and hashes of the files of a store entry, and what differs from them. Does not import torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: Files up to so many bytes are hashed whenever a plan is run; larger ones only before a stage reads them.
SMALL_BYTES = 2**20


def describe_files(directory: Path) -> dict[str, dict[str, Any]]:
    """Size in bytes and SHA-256 of every file below a directory, by relative name.

    Example:
        >>> _ = Path("a.txt").write_bytes(b"")
        >>> describe_files(Path("."))["a.txt"]["bytes"]
        0
    """
    found = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            found[path.relative_to(directory).as_posix()] = {"bytes": path.stat().st_size, "sha256": _hash_file(path)}
    return found


def find_damage(directory: Path, files: Mapping[str, Mapping[str, Any]], most: int | None = None) -> str | None:
    """Find a file that is not as it was written; returns what is wrong with it, or None.

    Args:
        directory: of the files.
        files: what `describe_files` found when they were written.
        most: files with more bytes are compared by their size only; None: all are compared by their contents.
    """
    for name, written in files.items():
        try:
            size = (directory / name).stat().st_size
            if size != written["bytes"]:
                return f"{name} has {size:,} bytes instead of {written['bytes']:,}"
            if (most is None or size <= most) and _hash_file(directory / name) != written["sha256"]:
                return f"{name} has other contents than were written"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror or error})"
    return None


def _hash_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
