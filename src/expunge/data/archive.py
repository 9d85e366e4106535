"""npz archives: directory and array headers are read and counted before any array is."""

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
    """A file that refuses to be read in pieces as large as only a hostile directory is."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self._file, self._path, self.bounded = file, path, True

    def read(self, size: int = -1) -> bytes:
        if self.bounded and size > ZIP_DIRECTORY:
            what = f"its zip directory is {size:,} bytes; at most {ZIP_DIRECTORY:,} are read"
            raise DataError(what, where=self._path, hint="an npz file of this library has one entry an array")
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
        """Raise DataError unless the arrays are plain, whole as far as declared, and together within the limit."""
        total = 0
        for key in keys:
            entry, where = self.arrays[key], f"{self._path}: {key[:60]}"
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise DataError("is packed in a way that numpy does not use", where=where, hint=_AGAIN)
            with self._archive.open(entry) as member:
                declared = _declared_bytes(member, where)
                header = member.tell()
            total += max(declared, entry.file_size)
            BYTES.check_expanded(total, self._stored, where=where, error=DataError)
            if header + declared != entry.file_size:
                raise DataError(
                    f"is not a whole npz file (the array declares {declared:,} bytes, and its entry has "
                    f"{entry.file_size - header:,})",
                    where=where,
                    hint=_AGAIN,
                )

    def read(self, key: str) -> NDArray[Any]:
        """One array; `zipfile` reads no more than the entry declares, which `check_sizes` has counted."""
        with self._archive.open(self.arrays[key]) as member:
            array: NDArray[Any] = np.lib.format.read_array(member, allow_pickle=False)
        if array.dtype.kind == "U" and array.size and array.dtype.itemsize:
            _check_characters(np.ascontiguousarray(array).reshape(-1), f"{self._path}: {key[:60]}")
        return array


def _check_characters(strings: NDArray[np.str_], where: str) -> None:
    """Raise DataError unless every code point is one: numpy reads any 32 bits, and Python fails on them later."""
    codes = strings.view(np.dtype(np.uint32).newbyteorder(strings.dtype.byteorder))
    if bool((codes > 0x10FFFF).any()) or bool(((codes >= 0xD800) & (codes <= 0xDFFF)).any()):
        raise DataError("holds strings with code points that are no characters", where=where, hint=_AGAIN)


def _declared_bytes(member: IO[bytes], where: str) -> int:
    """Bytes of the values that the header of an npy file declares; the header is read, and no more."""
    version = np.lib.format.read_magic(member)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"npy version {version}")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, kind = read(member)
    if kind.hasobject:
        raise DataError(
            "holds Python objects (pickles), which can run code when opened; they are never loaded",
            where=where,
            hint=_PICKLE,
        )
    if kind.kind not in "biufcUSmM":
        raise DataError(f"arrays of type {str(kind)[:60]} are not read", where=where, hint=_PICKLE)
    if len(shape) > DIMENSIONS or any(size < 0 for size in shape):
        raise DataError(f"the shape {str(shape)[:60]} is not one that is read", where=where, hint=_AGAIN)
    return math.prod(shape) * kind.itemsize


@contextlib.contextmanager
def open_archive(file: IO[bytes], path: Path) -> Iterator[Archive]:
    """The archive in an open file.

    Raises:
        DataError: its directory is larger than any npz file has, or names an array twice.
    """
    bounded = _Directory(file, path)
    with zipfile.ZipFile(bounded) as archive:
        bounded.bounded = False
        yield Archive(archive, path, os.fstat(file.fileno()).st_size)
