"""The index of image files: size, mode and a hash of the contents of each, read once and kept (`index_cache`)."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.core.errors import DataError
from expunge.core.files import open_file
from expunge.core.hashing import hash_bytes, hash_json
from expunge.core.reading.limits import BYTES
from expunge.core.show import repr_fields
from expunge.data.reading.index_cache import read_index, write_index

#: The formats that are decoded, whatever the extension says.
FORMATS = ("PNG", "JPEG", "WEBP")
_PART = 256
#: Errors of Pillow for damaged files.
DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    SyntaxError,
)
_SHOWN = 3


@dataclasses.dataclass(frozen=True)
class ImageIndex:
    """What is known of `N` image files.

    Attributes:
        root: the folder.
        paths: `N` relative paths.
        stamps: `N x 3` int64: bytes, time of modification and time of change (ns).
        digests: `N` SHA-256 of the contents, `N x 32` uint8.
        sizes: `N x 2` int64: width and height.
        modes: `N` modes of Pillow.
    """

    root: Path
    paths: NDArray[np.str_]
    stamps: NDArray[np.int64]
    digests: NDArray[np.uint8]
    sizes: NDArray[np.int64]
    modes: NDArray[np.str_]

    __repr__ = repr_fields

    def hash(self) -> str:
        """Hash of the contents of all files."""
        return hash_bytes(self.digests.tobytes())


def index_images(root: Path, paths: Sequence[str]) -> ImageIndex:
    """Read the header and hash the contents of each file, or take both from the last index of the folder.

    Raises:
        DataError: files are no images, have more pixels than Pillow reads, or more than one picture; the error names
            the first files.
    """
    names = np.asarray(paths, dtype=np.str_)
    stamps = np.empty((len(names), 3), dtype=np.int64)
    for row, path in enumerate(paths):
        stamps[row] = stamp(os.stat(root / path))
    index = f"images-{hash_json(os.path.abspath(root))[:16]}"
    digests = np.zeros((len(names), 32), dtype=np.uint8)
    sizes = np.zeros((len(names), 2), dtype=np.int64)
    modes = np.zeros(len(names), dtype="U8")
    todo = np.arange(len(names))
    kept = read_index(index)
    if set(kept) == {"paths", "stamps", "digests", "sizes", "modes"} and len({len(v) for v in kept.values()}) == 1:
        where = np.minimum(np.searchsorted(kept["paths"], names), max(0, len(kept["paths"]) - 1))
        same = np.zeros(len(names), dtype=bool)
        if len(kept["paths"]):
            same = (kept["paths"][where] == names) & (kept["stamps"][where] == stamps).all(axis=1)
        digests[same], sizes[same], modes[same] = (kept[key][where[same]] for key in ("digests", "sizes", "modes"))
        todo = np.flatnonzero(~same)
    problems: list[DataError] = []

    def read(rows: NDArray[np.int64]) -> None:
        for row in rows.tolist():
            try:
                digest, size, mode = _read_header(root / str(names[row]))
            except DataError as error:
                problems.append(error)
            else:
                digests[row], sizes[row], modes[row] = np.frombuffer(digest, dtype=np.uint8), size, mode

    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        list(pool.map(read, (todo[start : start + _PART] for start in range(0, len(todo), _PART))))
    if problems:
        problems.sort(key=lambda error: str(error.where))
        _raise_first(problems)
    found = ImageIndex(root, names, stamps, digests, sizes, modes)
    if len(todo) or len(kept["paths"]) != len(names):
        write_index(index, {f.name: getattr(found, f.name) for f in dataclasses.fields(found) if f.name != "root"})
    return found


def _raise_first(problems: Sequence[DataError]) -> None:
    first, others = problems[0], [Path(str(error.where)).name for error in problems[1:]]
    if not others:
        raise first
    more = f", and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
    names = ", ".join(others[:_SHOWN])
    hint = f"{first.hint}; {len(others)} more files have such errors: {names}{more}"
    raise DataError(first.what, where=first.where, hint=hint)


def stamp(status: os.stat_result) -> tuple[int, int, int]:
    """Size and times of a file."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _read_header(path: Path) -> tuple[bytes, tuple[int, int], str]:
    """The SHA-256 of a file, the size of its image and its mode."""
    with open_file(path, error=DataError) as file:
        BYTES.check(os.fstat(file.fileno()).st_size, "is", where=path, error=DataError)
        data = file.read()
    with open_image(io.BytesIO(data), path) as image:
        return hashlib.sha256(data).digest(), image.size, image.mode


def open_image(file: Any, where: object) -> Any:
    """Read the header of an image; the pixels are decoded later.

    Raises:
        DataError: it is no PNG, JPEG or WebP image, has more pixels than Pillow reads, or more than one picture.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise _too_large(str(error), where) from error
    except UnidentifiedImageError as error:
        hint = "it is damaged or of another format: replace or remove it"
        raise DataError(f"is not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image", where=where, hint=hint) from error
    except DAMAGE as error:
        raise describe_damage(error, where) from error
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and image.width * image.height > most:
        raise _too_large(f"{image.width} x {image.height} pixels, the limit is {most:,}", where)
    frames = getattr(image, "n_frames", 1)
    if frames != 1:
        raise DataError(f"has {frames} pictures", where=where, hint="a record is one picture: store each apart")
    return image


def _too_large(text: str, where: object) -> DataError:
    return DataError(
        f"has more pixels than Pillow reads ({text})",
        where=where,
        hint="store it smaller; in Python, PIL.Image.MAX_IMAGE_PIXELS is the limit",
    )


def describe_damage(error: Exception, where: object) -> DataError:
    """The error for an image that Pillow cannot decode."""
    return DataError(
        f"cannot be decoded: it is truncated or damaged ({type(error).__name__}: {str(error)[:100]})",
        where=where,
        hint="replace or remove the file",
    )
