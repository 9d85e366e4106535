"""Readers of file formats: WebP mosaics, IDX, fixed-length binary records, npz. Damaged files are refused."""

from __future__ import annotations

import gzip
import importlib.util
import math
import os
import struct
import tokenize
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from expunge.core.errors import DataError, join_names
from expunge.core.files import open_file
from expunge.core.reading.limits import BYTES, CLASSES, DIMENSIONS, RECORD_COST

from .archive import Archive, open_archive

_AGAIN = "it is truncated or of another format; copy or download it again"

#: The parts of an official split.
OFFICIAL_PARTS = ("train", "test")
#: Images in one row of a mosaic.
MOSAIC_COLUMNS = 100

#: Errors that the libraries raise for damaged or hostile files; memory is requested only below the limits.
_DAMAGE = (
    OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError, SyntaxError,
    MemoryError, struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip

_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_mosaic(path: Path, side: int, channels: int) -> NDArray[np.uint8]:
    """Read the images of a mosaic (100 in a row, row-major), `N x C x side x side`; for grey images, the red channel.

    Raises:
        DataError: the file cannot be decoded, or its size is not a multiple of the size of an image.
    """
    from PIL import Image

    try:
        with open_file(path, error=DataError) as file, Image.open(file, formats=("WEBP", "PNG")) as image:
            width, height = image.size
            stored = os.fstat(file.fileno()).st_size
            BYTES.check(stored, "is", where=path, error=DataError)
            BYTES.check_expanded(3 * width * height, stored, where=path, error=DataError)
            _check_mosaic(path, width, height, side)
            if image.mode == "RGB" and channels == 1:
                pixels = np.asarray(image.getchannel(0))[..., None]
            else:
                pixels = np.asarray(image.convert("RGB"))[..., :channels]
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"declares more pixels than are read ({error})", where=path, hint=_AGAIN) from error
    except _DAMAGE as error:
        raise DataError(f"is not a complete image file ({error})", where=path, hint=_AGAIN) from error
    grid = pixels.reshape(height // side, side, MOSAIC_COLUMNS, side, channels)
    return np.ascontiguousarray(grid.transpose(0, 2, 4, 1, 3)).reshape(-1, channels, side, side)


def _check_mosaic(path: Path, width: int, height: int, side: int) -> None:
    if height % side or width != MOSAIC_COLUMNS * side:
        raise DataError(
            f"is {width} x {height} pixels; a mosaic of {side} x {side} images is {MOSAIC_COLUMNS * side} wide "
            f"and a multiple of {side} high",
            where=path,
        )


def read_mosaics(paths: Iterable[Path], side: int, channels: int) -> NDArray[np.uint8]:
    """Read the images of several mosaics in order; they are decoded in parallel threads."""
    files = list(paths)
    with ThreadPoolExecutor(max_workers=max(1, min(len(files), os.cpu_count() or 1))) as pool:
        return np.concatenate(list(pool.map(lambda path: read_mosaic(path, side, channels), files)))


def read_idx(path: Path) -> NDArray[Any]:
    """Read the array of an IDX file, plain or gzipped (name ending in .gz).

    Format: two zero bytes, a type code, the number of dimensions, each dimension as a big-endian unsigned 32-bit
    number, then the values, big-endian, the last index fastest.

    Raises:
        DataError: the file is damaged or not an IDX file.
    """
    with open_file(path, error=DataError) as file:
        stored = os.fstat(file.fileno()).st_size
        compressed = path.suffix == ".gz"
        BYTES.check(stored, "is", where=path, error=DataError)
        most = BYTES.max_expanded(stored) if compressed else BYTES.value()
        try:
            stream = cast(IO[bytes], gzip.GzipFile(fileobj=file)) if compressed else file
            start = stream.read(4)
            if len(start) < 4 or start[:2] != b"\0\0" or start[2] not in _IDX_TYPES:
                raise DataError("is not an IDX file (wrong first bytes)", where=path, hint=_AGAIN)
            dtype, dimensions = np.dtype(_IDX_TYPES[start[2]]), start[3]
            if dimensions > DIMENSIONS:
                raise DataError(f"declares {dimensions} dimensions; at most {DIMENSIONS} are read", where=path)
            start += stream.read(4 * dimensions)
            if len(start) < 4 + 4 * dimensions:
                raise DataError(f"the header ends early ({len(start)} bytes)", where=path, hint=_AGAIN)
            shape = tuple(int(n) for n in np.frombuffer(start[4:], dtype=">u4"))
            expected = math.prod(shape) * dtype.itemsize
            if compressed:
                BYTES.check_expanded(expected, stored, where=path, error=DataError)
            data = stream.read(
                min(expected, most if compressed else stored) + 1
            )  # one more byte shows that there are too many
        except _DAMAGE as error:
            what = "gzip" if compressed else "IDX"
            raise DataError(f"is not a complete {what} file ({error})", where=path, hint=_AGAIN) from error
    if len(data) != expected:
        found = f"{len(data)} bytes of values" if len(data) < expected else "more bytes of values"
        raise DataError(
            f"has {found}; shape {shape} needs {expected}", where=path, hint="the file is truncated or damaged"
        )
    try:
        return np.frombuffer(data, dtype=dtype).reshape(shape).astype(dtype.newbyteorder("="))
    except ValueError as error:  # dimensions that numpy refuses although one of them is 0
        raise DataError(f"declares the shape {shape} ({error})", where=path, hint=_AGAIN) from error


def read_binary_records(path: Path, length: int) -> NDArray[np.uint8]:
    """Read records of a fixed number of bytes, `N x length`.

    Raises:
        DataError: the file is empty, or its size is not a multiple of `length`.
    """
    with open_file(path, error=DataError) as file:
        BYTES.check(os.fstat(file.fileno()).st_size, "is", where=path, error=DataError)
        data = np.fromfile(file, dtype=np.uint8)
    if len(data) == 0 or len(data) % length:
        raise DataError(
            f"has {len(data)} bytes, which is not a multiple of {length} (the bytes of a record)",
            where=path,
            hint=_AGAIN,
        )
    return data.reshape(-1, length)


def read_npz(path: Path, keys: Iterable[str] | None = None) -> dict[str, NDArray[Any]]:
    """Read arrays of an npz file without Python objects.

    Args:
        path: the file.
        keys: the required arrays; without it, all arrays are read.

    Raises:
        DataError: the file is damaged, has Python objects, or has no array of a key.
    """
    with open_file(path, error=DataError) as file:
        head = file.read(6)
        if head == b"\x93NUMPY":
            raise DataError("is a single array (npy), not an npz archive", where=path, hint="save it with numpy.savez")
        if head[:4] != b"PK\x03\x04":
            raise DataError("is not an npz file", where=path, hint=_AGAIN)
        try:
            with open_archive(file, path) as archive:
                return _arrays(archive, path, keys)
        except _DAMAGE as error:
            raise DataError(f"is not a complete npz file ({error})", where=path, hint=_AGAIN) from error


def _arrays(archive: Archive, path: Path, keys: Iterable[str] | None) -> dict[str, NDArray[Any]]:
    names = list(archive.arrays if keys is None else keys)
    missing = [name for name in names if name not in archive.arrays]
    if missing:
        hint = f"it has: {join_names(sorted(archive.arrays))}"
        raise DataError(f"has no array {missing[0]!r}", where=path, hint=hint)
    archive.check_sizes(names)
    return {name: archive.read(name) for name in names}


def read_scikit_learn_table(name: str, *, skip_lines: int = 0) -> NDArray[np.float64] | None:
    """Read a table of numbers that scikit-learn contains, without importing scikit-learn (half a second).

    Args:
        name: a CSV file in `sklearn/datasets/data`, compressed with gzip or not.
        skip_lines: lines before the numbers.

    Returns:
        The numbers, N x columns; None if scikit-learn is not installed as files or keeps this file elsewhere.
    """
    found = importlib.util.find_spec("sklearn")
    for folder in () if found is None else found.submodule_search_locations or ():
        path = Path(folder, "datasets", "data", name)
        if path.is_file():
            data = path.read_bytes()
            text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
            return np.loadtxt(text.splitlines(), delimiter=",", skiprows=skip_lines, ndmin=2)
    return None


def check_same_length(path: Path, **arrays: NDArray[Any]) -> int:
    """Return the common length of arrays that describe the same records.

    Raises:
        DataError: the lengths differ.
    """
    lengths = {name: len(values) for name, values in arrays.items()}
    if len(set(lengths.values())) != 1:
        listing = ", ".join(f"{name} {count}" for name, count in lengths.items())
        raise DataError(f"arrays of different lengths ({listing})", where=path)
    return next(iter(lengths.values()))


def one_hot(codes: NDArray[np.integer], count: int, *, where: object) -> NDArray[np.float32]:
    """Encode `N` codes below `count` as `N x count` zeros and ones.

    Raises:
        DataError: the result takes more memory than the limit.
    """
    BYTES.check(4 * len(codes) * count, "one-hot columns take", where=where, error=DataError)
    out = np.zeros((len(codes), count), dtype=np.float32)
    out[np.arange(len(codes)), codes] = 1.0
    return out


def make_official_ids(train: int, test: int) -> NDArray[np.str_]:
    """`train-00000`, ..., then `test-00000`, ...: the position of each record in the official order of its part.

    Raises:
        DataError: so many records take more memory than the limit.
    """
    BYTES.check((train + test) * RECORD_COST, "the ids of the records take", where=None, error=DataError)
    return np.asarray([f"train-{i:05d}" for i in range(train)] + [f"test-{i:05d}" for i in range(test)], dtype=np.str_)


def make_official_partition(train: int, test: int) -> NDArray[np.str_]:
    """`train` or `test` for each record, in the order of `make_official_ids`."""
    return np.repeat(np.asarray(OFFICIAL_PARTS), [train, test])


def make_row_ids(count: int, digits: int, *, where: object) -> NDArray[np.str_]:
    """`row-000000`, ...: the ids of records without ids of their own.

    Raises:
        DataError: so many records take more memory than the limit.
    """
    BYTES.check(count * RECORD_COST, f"the ids of {count:,} records take", where=where, error=DataError)
    return np.asarray([f"row-{i:0{digits}d}" for i in range(count)], dtype=np.str_)


def check_vocabulary(names: Iterable[object], what: str, where: object) -> None:
    """Raise DataError if a name that values are chosen by is a duplicate: two values would be one."""
    listed = [str(name) for name in names]
    duplicates = [name for name, count in Counter(listed).items() if count > 1]
    if duplicates:
        raise DataError(f"two {what} have the same name, {duplicates[0][:100]!r}", where=where, hint=_AGAIN)


#: Classes that a few records may have; above, there are at most as many classes as records.
FEW_CLASSES = 10


def count_classes(labels: NDArray[Any], where: object) -> int:
    """Count the classes of integer labels that start from 0 and have no names: the largest label + 1.

    Raises:
        DataError: a label is negative, or there are more classes than records (and than `FEW_CLASSES`), or than
            `CLASSES`.
    """
    least, most = int(labels.min(initial=0)), int(labels.max(initial=0))
    if least < 0 or most >= CLASSES:
        wrong = least if least < 0 else most
        raise DataError(f"the label {wrong} is not one of 0 to {CLASSES - 1}", where=where)
    if most + 1 > max(len(labels), FEW_CLASSES):
        raise DataError(
            f"the label {most} would make {most + 1:,} classes for {len(labels):,} records",
            where=where,
            hint="number the classes from 0 without gaps, or give their names",
        )
    return most + 1
