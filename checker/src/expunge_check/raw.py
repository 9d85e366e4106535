"""Bytes of regular files, strict JSON and safetensors: everything that is read goes through here.

A file is opened first and judged by what was opened, so nothing can be put in its place between the two. safetensors
is decoded here and not by its library, which opens files by their path, maps them into memory (a file that is cut
meanwhile ends the process) and takes the last of duplicate entries.
"""

from __future__ import annotations

import collections
import errno
import json
import math
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import MALFORMED, VALUE, BadCertificate, is_printable, printable, shown
from .limits import Limits

#: Bytes that a byte of JSON may become as Python objects.
JSON_MEMORY = 64
#: The part of the memory that JSON may take; the rest is left to arrays.
JSON_PART = 8
#: Work of reading a byte, of JSON and of arrays.
JSON_WORK, BYTE_WORK = 2000, 50
#: Deepest nesting of JSON, longest name, most digits of an integer, most axes of an array.
DEPTH, NAME, DIGITS, AXES = 32, 200, 1000, 16
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
#: Never waits for a writer, never becomes the controlling terminal, never follows a link at the end of a path.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
_TYPES = {
    "U8": "<u1", "U16": "<u2", "U32": "<u4", "U64": "<u8", "I8": "<i1", "I16": "<i2", "I32": "<i4", "I64": "<i8",
    "F16": "<f2", "F32": "<f4", "F64": "<f8",
}  # fmt: skip


class Opened:
    """A certificate folder, held open: its files are opened relative to it, whatever becomes of the path.

    Args:
        path: the folder; it may be reached through links.
        limits: what its files may take together.

    Raises:
        BadCertificate: it is no folder, or cannot be opened.
    """

    def __init__(self, path: Path, limits: Limits) -> None:
        self.path, self.limits = path, limits
        self.size = 0
        self.handle: int | None = None
        if os.open in os.supports_dir_fd:
            try:
                self.handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            except (OSError, ValueError) as error:
                raise BadCertificate(f"{path} cannot be read: {_reason(error)}") from error

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        if self.handle is not None:
            os.close(self.handle)

    def read(self, name: str) -> bytearray:
        """The bytes of a file of the folder: a regular file, no link."""
        data = _read(self.path / name, name, self.handle, self.limits, self.size)
        self.size += len(data)
        return data


def read_file(path: Path, limits: Limits) -> bytearray:
    """The bytes of a regular file that the user names; links on the way are the user's own.

    Raises:
        BadCertificate: it cannot be read, is not a regular file, or is beyond the limit.
    """
    return _read(path, path.name, None, limits, 0, links=True)


def _read(path: Path, name: str, folder: int | None, limits: Limits, size: int, *, links: bool = False) -> bytearray:
    try:
        flags = _FLAGS if links else _FLAGS | _NO_FOLLOW
        if not links and path.is_symlink():  # where O_NOFOLLOW exists, it also closes the gap after this
            raise BadCertificate(f"{name} is a link; a certificate folder holds regular files only")
        handle = os.open(path, flags) if folder is None else os.open(name, flags, dir_fd=folder)
        try:
            return _whole(handle, name, limits, size)
        finally:
            os.close(handle)
    except (OSError, *MALFORMED) as error:
        raise BadCertificate(f"{name} cannot be read: {_reason(error)}") from error


def _whole(handle: int, name: str, limits: Limits, size: int) -> bytearray:
    """The bytes of an open file, which must be a regular one and keep its size; `size`: of those read before."""
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode):
        raise BadCertificate(f"{name} is not a regular file")
    limits.check_memory(size + found.st_size, f"reading {name}")
    limits.check_work(BYTE_WORK * (size + found.st_size), f"reading {name}")
    data, got = bytearray(found.st_size), 0
    with open(handle, "rb", buffering=0, closefd=False) as file, memoryview(data) as view:
        while got < len(data) and (read := file.readinto(view[got : got + 2**24])):
            got += read
        if got != len(data) or file.read(1):
            raise BadCertificate(f"{name} changed while it was read")
    return data


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError):
        if error.errno == errno.ELOOP:
            return "it is a link; a certificate folder holds regular files only"
        return error.strerror or type(error).__name__
    return printable(str(error), VALUE)


# JSON -------------------------------------------------------------------------------------------------------------


def parse_json(text: bytes | bytearray | str, name: str, limits: Limits) -> Any:
    """The value of a JSON text in which nothing can be read in two ways.

    Args:
        text: UTF-8.
        name: of the file, for messages.
        limits: the text may take an eighth of the memory.

    Raises:
        BadCertificate: it is not JSON, has a duplicate key, a number that no float64 holds, an integer of more than
            1,000 digits, nesting deeper than 32, or a string that cannot be printed.
    """
    limits.check_memory(JSON_PART * JSON_MEMORY * len(text), f"the JSON of {name}")
    limits.check_work(JSON_WORK * len(text), f"the JSON of {name}")
    try:
        whole = text if isinstance(text, str) else text.decode("utf-8")
        value = json.loads(
            whole, object_pairs_hook=_unique, parse_constant=_constant, parse_float=_finite, parse_int=_integer
        )
        _check_value(value)
    except MALFORMED as error:
        message = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise BadCertificate(f"{name} cannot be read: {printable(message, 2 * VALUE)}") from error
    return value


class _Refused(ValueError):
    """A message of this module, in which what comes from the file is already `shown`."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice, _ = collections.Counter(key for key, _ in pairs).most_common(1)[0]
        raise _Refused(f"duplicate key {shown(twice)}")
    return found


def _constant(text: str) -> float:
    raise _Refused(f"{text} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _Refused(f"the number {shown(text)} is beyond float64")
    return number


def _integer(text: str) -> int:
    if len(text) > DIGITS:
        raise _Refused(f"an integer of {len(text)} digits")
    return int(text)


def _check_value(value: Any) -> None:
    """Depth and strings of a JSON value."""
    level = [value]
    for _ in range(DEPTH + 1):
        below: list[Any] = []
        for member in level:
            if isinstance(member, dict):
                for key in member:
                    check_name(key)
                below.extend(member.values())
            elif isinstance(member, list):
                below.extend(member)
            elif isinstance(member, str) and not is_printable(member):
                raise _Refused(f"the string {shown(member)} holds characters that cannot be printed")
        level = below
        if not level:
            return
    raise _Refused(f"it is nested deeper than {DEPTH} levels")


def check_name(name: str) -> None:
    """Raise ValueError where a key or the name of a tensor is too long or cannot be printed."""
    if len(name) > NAME or not is_printable(name):
        raise _Refused(f"the name {shown(name)} is too long or holds characters that cannot be printed")


# safetensors ------------------------------------------------------------------------------------------------------


def parse_arrays(
    data: bytearray, name: str, limits: Limits, *, strict: bool = False
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """The arrays of a safetensors file, as views of its bytes, and the JSON under `expunge` in its metadata.

    `strict`: other metadata, which no format knows, are refused.

    Raises:
        BadCertificate: the file is not whole, has bytes that belong to no array or to two, or its header or metadata
            are not what `parse_json` accepts.
    """
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8:
        raise BadCertificate(f"{name} cannot be read: it is not a whole safetensors file")
    header = parse_json(bytes(memoryview(data)[8 : 8 + length]), name, limits)
    try:
        metadata = header.pop("__metadata__", {}) if isinstance(header, dict) else None
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise _Refused("its header is not that of a safetensors file")
        arrays, end = {}, 8 + length
        for key, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            arrays[key] = _array(data, key, entry, end, 8 + length)
            end = 8 + length + entry["data_offsets"][1]
        if end != len(data):
            raise _Refused("it has bytes that belong to no tensor, or lacks some")
    except MALFORMED as error:
        message = str(error) if isinstance(error, _Refused) else repr(error)
        raise BadCertificate(f"{name} cannot be read: {printable(message, 2 * VALUE)}") from error
    if strict and set(metadata) - {"expunge"}:
        raise BadCertificate(f"{name} has metadata besides that under `expunge`")
    held = parse_json(metadata.get("expunge", "{}"), f"the metadata of {name}", limits)
    if not isinstance(held, dict):
        raise BadCertificate(f"{name} has damaged metadata")
    return arrays, held


def _array(data: bytearray, name: str, entry: Any, start: int, base: int) -> NDArray[Any]:
    if set(entry) != {"dtype", "shape", "data_offsets"} or entry["dtype"] not in _TYPES:
        raise _Refused(f"tensor {shown(name)} is of a type that is not read")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not all(type(n) is int and 0 <= n < 2**63 for n in (*shape, *offsets)) or len(offsets) != 2:
        raise _Refused(f"tensor {shown(name)} has a damaged entry")
    kind, count = np.dtype(_TYPES[entry["dtype"]]), math.prod(shape) if len(shape) <= AXES else -1
    if base + offsets[0] != start or offsets[1] - offsets[0] != count * kind.itemsize or base + offsets[1] > len(data):
        raise _Refused(f"tensor {shown(name)} does not fit its bytes")
    return np.frombuffer(data, kind, count, start).reshape(shape)
