"""Readers of file formats: WebP mosaics, IDX, fixed-length binary records, npz. Damaged files are named as such."""

from __future__ import annotations

import gzip
import math
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from expunge.core.errors import DataError, listed
from expunge.core.files import open_file
from expunge.core.reading.limits import BYTES, CLASSES, DIMENSIONS, RECORD_COST

from .archive import Archive, open_archive

_AGAIN = "it is truncated or of another format; copy or download it again"

#: Images in one row of a mosaic.
MOSAIC_COLUMNS = 100

#: What damaged or hostile files make the libraries raise; more than memory is asked for only below the limits.
_DAMAGE = (
    OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError, SyntaxError,
    MemoryError, struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip

_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_mosaic(path: Path, side: int, channels: int) -> NDArray[np.uint8]:
    """The images of a mosaic (100 in a row, row-major), `N x C x side x side`; grey ones take the red channel.

    Raises:
        DataError: the file cannot be decoded, or its size is not a whole number of images.
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
        raise DataError(f"is not a whole image file ({error})", where=path, hint=_AGAIN) from error
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
    """The images of several mosaics, one after the other; they are decoded in parallel threads."""
    files = list(paths)
    with ThreadPoolExecutor(max_workers=max(1, min(len(files), os.cpu_count() or 1))) as pool:
        return np.concatenate(list(pool.map(lambda path: read_mosaic(path, side, channels), files)))


def read_idx(path: Path) -> NDArray[Any]:
    """The array of an IDX file, plain or gzipped (the name then ends in .gz).

    Format: two zero bytes, a type code, the number of dimensions, each dimension as a big-endian unsigned 32-bit
    number, then the values, big-endian, the last index fastest.

    Raises:
        DataError: the file is damaged or not IDX.
    """
    with open_file(path, error=DataError) as file:
        stored = os.fstat(file.fileno()).st_size
        packed = path.suffix == ".gz"
        BYTES.check(stored, "is", where=path, error=DataError)
        room = BYTES.room(stored) if packed else BYTES.value()
        try:
            stream = cast(IO[bytes], gzip.GzipFile(fileobj=file)) if packed else file
            start = stream.read(4)
            if len(start) < 4 or start[:2] != b"\0\0" or start[2] not in _IDX_TYPES:
                raise DataError("is not an IDX file (wrong first bytes)", where=path, hint=_AGAIN)
            kind, dimensions = np.dtype(_IDX_TYPES[start[2]]), start[3]
            if dimensions > DIMENSIONS:
                raise DataError(f"declares {dimensions} dimensions; at most {DIMENSIONS} are read", where=path)
            start += stream.read(4 * dimensions)
            if len(start) < 4 + 4 * dimensions:
                raise DataError(f"the header ends early ({len(start)} bytes)", where=path, hint=_AGAIN)
            shape = tuple(int(n) for n in np.frombuffer(start[4:], dtype=">u4"))
            expected = math.prod(shape) * kind.itemsize
            if packed:
                BYTES.check_expanded(expected, stored, where=path, error=DataError)
            data = stream.read(
                min(expected, room if packed else stored) + 1
            )  # one byte more shows that the file holds too many
        except _DAMAGE as error:
            what = "gzip" if packed else "IDX"
            raise DataError(f"is not a whole {what} file ({error})", where=path, hint=_AGAIN) from error
    if len(data) != expected:
        held = f"{len(data)} bytes of values" if len(data) < expected else "more bytes of values"
        raise DataError(
            f"holds {held}; shape {shape} needs {expected}", where=path, hint="the file is truncated or damaged"
        )
    try:
        return np.frombuffer(data, dtype=kind).reshape(shape).astype(kind.newbyteorder("="))
    except ValueError as error:  # dimensions whose product no array has, beside one that is 0
        raise DataError(f"declares the shape {shape} ({error})", where=path, hint=_AGAIN) from error


def read_binary_records(path: Path, length: int) -> NDArray[np.uint8]:
    """Records of a fixed number of bytes, `N x length`.

    Raises:
        DataError: the file is empty or no whole number of records.
    """
    with open_file(path, error=DataError) as file:
        BYTES.check(os.fstat(file.fileno()).st_size, "is", where=path, error=DataError)
        data = np.fromfile(file, dtype=np.uint8)
    if len(data) == 0 or len(data) % length:
        raise DataError(
            f"holds {len(data)} bytes, which is not a whole number of {length}-byte records", where=path, hint=_AGAIN
        )
    return data.reshape(-1, length)


def read_npz(path: Path, keys: Iterable[str] | None = None) -> dict[str, NDArray[Any]]:
    """Arrays of an npz file without objects.

    Args:
        path: the file.
        keys: the arrays that must be there; all there are without it.

    Raises:
        DataError: the file is damaged, holds Python objects, or lacks a key.
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
            raise DataError(f"is not a whole npz file ({error})", where=path, hint=_AGAIN) from error


def _arrays(archive: Archive, path: Path, keys: Iterable[str] | None) -> dict[str, NDArray[Any]]:
    names = list(archive.arrays if keys is None else keys)
    missing = [name for name in names if name not in archive.arrays]
    if missing:
        hint = f"it holds: {listed(sorted(archive.arrays))}"
        raise DataError(f"has no array {missing[0]!r}", where=path, hint=hint)
    archive.check_sizes(names)
    return {name: archive.read(name) for name in names}


def same_length(path: Path, **arrays: NDArray[Any]) -> int:
    """The common length of arrays that describe the same records.

    Raises:
        DataError: they differ.
    """
    lengths = {name: len(values) for name, values in arrays.items()}
    if len(set(lengths.values())) != 1:
        told = ", ".join(f"{name} {count}" for name, count in lengths.items())
        raise DataError(f"arrays of different lengths ({told})", where=path)
    return next(iter(lengths.values()))


def one_hot(codes: NDArray[np.integer], count: int, *, where: object) -> NDArray[np.float32]:
    """`N` codes below `count` as `N x count` zeros and ones.

    Raises:
        DataError: they take more memory than the limit.
    """
    BYTES.check(4 * len(codes) * count, "one-hot columns take", where=where, error=DataError)
    out = np.zeros((len(codes), count), dtype=np.float32)
    out[np.arange(len(codes)), codes] = 1.0
    return out


def numbered_ids(count: int, digits: int, *, where: object) -> NDArray[np.str_]:
    """`row-000000`, ...: the ids of records that bring none.

    Raises:
        DataError: so many records take more memory than the limit.
    """
    BYTES.check(count * RECORD_COST, f"the ids of {count:,} records take", where=where, error=DataError)
    return np.asarray([f"row-{i:0{digits}d}" for i in range(count)], dtype=np.str_)


def counted_classes(labels: NDArray[Any], where: object) -> int:
    """The number of classes that integer labels from 0 imply.

    Raises:
        DataError: labels below 0, or more classes than `CLASSES`.
    """
    least, most = int(labels.min(initial=0)), int(labels.max(initial=0))
    if least < 0 or most >= CLASSES:
        wrong = least if least < 0 else most
        raise DataError(f"the label {wrong} is not one of 0 to {CLASSES - 1}", where=where)
    return most + 1
