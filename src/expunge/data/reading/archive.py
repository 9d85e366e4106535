"""npz archives: the directory and the headers of the arrays are read and checked before any array is read."""

from __future__ import annotations

import contextlib
import math
import os
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from expunge.core.errors import DataError
from expunge.core.reading.limits import BYTES, DIMENSIONS, ZIP_DIRECTORY

_AGAIN = "it is truncated or of another format; copy or download it again"
_PICKLE = "save plain numeric and text arrays with numpy.savez"


class _Directory:
    """A file that refuses reads of the size that only a hostile directory needs."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self._file, self._path, self.bounded = file, path, True

    def read(self, size: int = -1) -> bytes:
        if self.bounded and size > ZIP_DIRECTORY:
            what = f"its zip directory has {size:,} bytes; at most {ZIP_DIRECTORY:,} are read"
            raise DataError(what, where=self._path, hint="an npz file has one entry for each array")
        return self._file.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class Archive:
    """An open npz file.

    Attributes:
        arrays: the entry of every array, by its key.
    """

    def __init__(self, archive: zipfile.ZipFile, path: Path, stored: int) -> None:
        self._archive, self._path, self._stored = archive, path, stored
        self.arrays: dict[str, zipfile.ZipInfo] = {}
        for entry in archive.infolist():
            key = entry.filename.removesuffix(".npy")
            if key in self.arrays:
                raise DataError(f"the array {key[:60]!r} is a duplicate", where=path, hint=_AGAIN)
            self.arrays[key] = entry

    def check_sizes(self, keys: Iterable[str]) -> None:
        """Raise DataError unless the arrays are plain, have the declared sizes, and are together within the limit."""
        total = 0
        for key in keys:
            entry, where = self.arrays[key], f"{self._path}: {key[:60]}"
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise DataError("uses a compression that numpy does not use", where=where, hint=_AGAIN)
            with self._archive.open(entry) as member:
                declared = _read_declared_bytes(member, where)
                header = member.tell()
            total += max(declared, entry.file_size)
            BYTES.check_expanded(total, self._stored, where=where, error=DataError)
            if header + declared != entry.file_size:
                raise DataError(
                    f"is not a complete npz file (the array declares {declared:,} bytes, and its entry has "
                    f"{entry.file_size - header:,})",
                    where=where,
                    hint=_AGAIN,
                )

    def read(self, key: str) -> NDArray[Any]:
        """Read one array; `zipfile` reads no more than the entry declares, which `check_sizes` has checked."""
        with self._archive.open(self.arrays[key]) as member:
            array: NDArray[Any] = np.lib.format.read_array(member, allow_pickle=False)
        if array.dtype.kind == "U" and array.size and array.dtype.itemsize:
            _check_characters(np.ascontiguousarray(array).reshape(-1), f"{self._path}: {key[:60]}")
        return array


def _check_characters(strings: NDArray[np.str_], where: str) -> None:
    """Raise DataError for invalid code points: numpy reads any 32 bits, and Python fails on them later."""
    codes = strings.view(np.dtype(np.uint32).newbyteorder(strings.dtype.byteorder))
    if bool((codes > 0x10FFFF).any()) or bool(((codes >= 0xD800) & (codes <= 0xDFFF)).any()):
        raise DataError("has strings with invalid code points", where=where, hint=_AGAIN)


def _read_declared_bytes(member: IO[bytes], where: str) -> int:
    """Read the header of an npy file and return the size in bytes of the values that it declares."""
    version = np.lib.format.read_magic(member)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"npy version {version}")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(member)
    if dtype.hasobject:
        raise DataError(
            "has Python objects (pickles), which can run code when loaded; they are never loaded",
            where=where,
            hint=_PICKLE,
        )
    if dtype.kind not in "biufcUSmM":
        raise DataError(f"arrays of type {str(dtype)[:60]} are not read", where=where, hint=_PICKLE)
    if len(shape) > DIMENSIONS or any(size < 0 for size in shape):
        raise DataError(f"the shape {str(shape)[:60]} is invalid", where=where, hint=_AGAIN)
    return math.prod(shape) * dtype.itemsize


@contextlib.contextmanager
def open_archive(file: IO[bytes], path: Path) -> Iterator[Archive]:
    """Open the archive in an open file.

    Raises:
        DataError: its directory is too large, or an array is a duplicate.
    """
    bounded = _Directory(file, path)
    with zipfile.ZipFile(bounded) as archive:
        bounded.bounded = False
        yield Archive(archive, path, os.fstat(file.fileno()).st_size)
