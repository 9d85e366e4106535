"""Readers of file formats: WebP mosaics, IDX, fixed-length binary records, npz. Damaged files are named as such."""

from __future__ import annotations

import gzip
import math
import os
import zipfile
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.core.errors import DataError

_AGAIN = "it is truncated or of another format; copy or download it again"

#: Images in one row of a mosaic.
MOSAIC_COLUMNS = 100

_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_mosaic(path: Path, side: int, channels: int) -> NDArray[np.uint8]:
    """The images of a mosaic (100 in a row, row-major), `N x C x side x side`; grey ones take the red channel.

    Raises:
        DataError: the file cannot be decoded, or its size is not a whole number of images.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode == "RGB" and channels == 1:
                pixels = np.asarray(image.getchannel(0))[..., None]
            else:
                pixels = np.asarray(image.convert("RGB"))[..., :channels]
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"is not a whole image file ({error})", where=path, hint=_AGAIN) from error
    height, width = pixels.shape[:2]
    if height % side or width != MOSAIC_COLUMNS * side:
        raise DataError(
            f"is {width} x {height} pixels; a mosaic of {side} x {side} images is {MOSAIC_COLUMNS * side} wide "
            f"and a multiple of {side} high",
            where=path,
        )
    grid = pixels.reshape(height // side, side, MOSAIC_COLUMNS, side, channels)
    return np.ascontiguousarray(grid.transpose(0, 2, 4, 1, 3)).reshape(-1, channels, side, side)


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
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"is not a whole gzip file ({error})", where=path, hint=_AGAIN) from error
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in _IDX_TYPES:
        raise DataError("is not an IDX file (wrong first bytes)", where=path, hint=_AGAIN)
    kind, dimensions = np.dtype(_IDX_TYPES[data[2]]), data[3]
    start = 4 + 4 * dimensions
    shape = tuple(int(n) for n in np.frombuffer(data[4:start], dtype=">u4")) if len(data) >= start else ()
    if len(shape) != dimensions:
        raise DataError(f"the header ends early ({len(data)} bytes)", where=path, hint=_AGAIN)
    expected = start + math.prod(shape) * kind.itemsize
    if len(data) != expected:
        raise DataError(
            f"holds {len(data)} bytes; shape {shape} needs {expected}",
            where=path,
            hint="the file is truncated or damaged",
        )
    return np.frombuffer(data, dtype=kind, offset=start).reshape(shape).astype(kind.newbyteorder("="))


def read_binary_records(path: Path, length: int) -> NDArray[np.uint8]:
    """Records of a fixed number of bytes, `N x length`.

    Raises:
        DataError: the file is empty or no whole number of records.
    """
    data = np.fromfile(path, dtype=np.uint8)
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
    try:
        with open(path, "rb") as file:
            head = file.read(6)
        if head == b"\x93NUMPY":
            raise DataError("is a single array (npy), not an npz archive", where=path, hint="save it with numpy.savez")
        if head[:4] != b"PK\x03\x04":
            raise DataError("is not an npz file", where=path, hint=_AGAIN)
        with np.load(path, allow_pickle=False) as archive:
            names = list(archive.files if keys is None else keys)
            missing = [name for name in names if name not in archive.files]
            if missing:
                held = ", ".join(sorted(archive.files))
                raise DataError(f"has no array {missing[0]!r}", where=path, hint=f"it holds: {held}")
            return {name: archive[name] for name in names}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        if "allow_pickle" in str(error) or "pickled" in str(error):
            raise DataError(
                "holds Python objects (pickles), which can run code when opened; they are never loaded",
                where=path,
                hint="save plain numeric and text arrays with numpy.savez",
            ) from error
        raise DataError(f"is not a whole npz file ({error})", where=path, hint=_AGAIN) from error


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
