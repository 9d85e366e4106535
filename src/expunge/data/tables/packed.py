"""Features of many records in one file, of which only the rows of a batch are read."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.core.errors import DataError
from expunge.core.files import staged_file
from expunge.core.hashing import hash_json
from expunge.data.reading.index_cache import get_index_directory, read_index, write_index


class PackedRows:
    """A map-style dataset of features in a `.npy` file, in which a record is one stretch of bytes.

    Args:
        path: the file.
        labels: `N` class indices.
        features_hash: hash of the features (`expunge.core.hashing.hash_array`).
        keep: what must live as long as this object, such as the temporary folder of the file.
    """

    def __init__(self, path: Path, labels: NDArray[np.int64], features_hash: str, keep: object = None) -> None:
        self.path, self.labels, self.features_hash, self.keep = path, labels, features_hash, keep
        self._rows: NDArray[Any] | None = None

    def __getstate__(self) -> dict[str, Any]:  # another process maps the file itself
        return {**self.__dict__, "_rows": None, "keep": None}

    def _open(self) -> NDArray[Any]:
        if self._rows is None:
            try:
                self._rows = np.load(self.path, mmap_mode="r")
            except (OSError, ValueError) as error:
                hint = "it was deleted or damaged; load the records again"
                raise DataError(f"the features cannot be read ({error})", where=self.path, hint=hint) from error
        return self._rows

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[NDArray[Any], int]:
        return np.array(self._open()[row]), int(self.labels[row])

    def read_rows(self, rows: Iterable[int]) -> NDArray[Any]:
        """Read the features of some records, `B x ...`."""
        return self._open()[np.asarray(rows, dtype=np.int64)]


def write_packed(
    name: str,
    stamps: Any,
    blocks: Iterator[NDArray[Any]],
    shape: tuple[int, ...],
    dtype: str,
    labels: NDArray[np.int64],
    ids: NDArray[np.str_],
) -> PackedRows:
    """Write features block by block, or use the file of an earlier call with equal stamps.

    The file is in the directory of indexes, or else in a temporary folder that is deleted with the result.

    Args:
        name: name of the file; one of another name is another file.
        stamps: JSON values on which the features depend.
        blocks: the features in order, some records at a time.
        shape: of all features.
        dtype: of the features.
        labels: the labels of the records.
        ids: the record ids; the index beside the file has them, so that `expunge purge` finds it.
    """
    directory, keep = get_index_directory(), None
    if directory is None:
        keep = tempfile.TemporaryDirectory(prefix="expunge-")
        directory = Path(keep.name)
    path, key = directory / f"{name}.npy", hash_json([stamps, list(shape), dtype])
    known = read_index(name)
    with contextlib.suppress(OSError, KeyError, ValueError):
        same = str(known["key"][0]) == key and np.array_equal(known["ids"], ids)
        if same and os.stat(path).st_size == int(known["bytes"][0]):
            return PackedRows(path, labels, str(known["hash"][0]), keep)
    # until the file is complete, the index has the ids of both files, and no key
    write_index(name, {"ids": np.union1d(known["ids"], ids) if "ids" in known else ids})
    digest = hashlib.sha256()
    kind = np.dtype(dtype)
    for part in (kind.name.encode(), str(tuple(shape)).encode()):  # the form of `hash_array`
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    digest.update((int(np.prod(shape, dtype=np.int64)) * kind.itemsize).to_bytes(8, "little"))
    with staged_file(path) as temporary, open(temporary, "wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": tuple(shape)}
        np.lib.format.write_array_header_1_0(file, header)
        for block in blocks:
            data = np.ascontiguousarray(block, dtype=kind.newbyteorder("<")).tobytes()
            digest.update(data)
            file.write(data)
    found = digest.hexdigest()
    size = os.stat(path).st_size
    about = {"key": np.asarray([key]), "hash": np.asarray([found]), "bytes": np.asarray([size])}
    write_index(name, {**about, "ids": ids})
    return PackedRows(path, labels, found, keep)
