"""Indexes of large data sets, kept beside the results: what was read from each file, and its size and times.

An index saves time only. It is used for files whose size and times are those that it has, and read again for others.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.core.errors import ExpungeError
from expunge.core.files import staged_file

from .readers import read_npz

_DIRECTORY: ContextVar[Path | None] = ContextVar("index_directory", default=None)


@contextlib.contextmanager
def use_index_directory(path: Path | None) -> Iterator[None]:
    """Keep indexes in this directory within the block; with None, none is kept.

    Example:
        >>> with use_index_directory(Path("store/index")):
        ...     get_index_directory()
        PosixPath('store/index')
    """
    token = _DIRECTORY.set(path)
    try:
        yield
    finally:
        _DIRECTORY.reset(token)


def get_index_directory() -> Path | None:
    """The directory of indexes, or None."""
    return _DIRECTORY.get()


def read_index(name: str) -> dict[str, NDArray[Any]]:
    """Read the arrays of an index; empty if there is none, or if it is damaged."""
    directory = _DIRECTORY.get()
    path = None if directory is None else directory / f"{name}.npz"
    if path is None or not path.is_file():
        return {}
    try:
        return read_npz(path)
    except ExpungeError:
        return {}


def write_index(name: str, arrays: dict[str, NDArray[Any]]) -> None:
    """Write the arrays of an index; errors are ignored, since an index only saves time."""
    directory = _DIRECTORY.get()
    if directory is None:
        return
    path = directory / f"{name}.npz"
    with contextlib.suppress(ExpungeError), staged_file(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
