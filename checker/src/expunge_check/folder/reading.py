"""Reading of untrusted files: bytes of regular files, strict JSON, safetensors. All input goes through this module.

A file is first opened and then checked through its handle, so it cannot be exchanged in between. safetensors files are
decoded here, because the safetensors library opens files by path, maps them into memory (truncating such a file while
it is read kills the process) and silently takes the last of duplicate entries.
"""

from __future__ import annotations

import collections
import errno
import json
import math
import os
import re
import stat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge_check.errors import MALFORMED, VALUE, BadCertificate, escape, is_printable, quote
from expunge_check.limits import Limits

#: Bytes of Python objects per byte of JSON, at most.
JSON_MEMORY = 64
#: JSON may take one part in this many of the memory limit.
JSON_PART = 8
#: Work of reading one byte of JSON, and of arrays.
JSON_WORK, BYTE_WORK = 2000, 50
#: Deepest nesting of JSON, longest name, most digits of an integer, most axes of an array.
DEPTH, NAME, DIGITS, AXES = 32, 200, 1000, 16
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
#: Opening must not wait for a writer, nor make a terminal the controlling one.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
_TYPES = {
    "U8": "<u1", "U16": "<u2", "U32": "<u4", "U64": "<u8", "I8": "<i1", "I16": "<i2", "I32": "<i4", "I64": "<i8",
    "F16": "<f2", "F32": "<f4", "F64": "<f8",
}  # fmt: skip


class OpenFolder:
    """An open certificate folder. Its files are opened relative to its handle, so a change of the path has no effect.

    Args:
        path: the folder; the path may contain links.
        limits: memory and work limits for all its files together.

    Raises:
        BadCertificate: it is not a folder, or cannot be opened.
    """

    def __init__(self, path: Path, limits: Limits) -> None:
        self.path, self.limits = path, limits
        self.size = 0
        self.handle: int | None = None
        if os.open in os.supports_dir_fd:
            try:
                self.handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            except (OSError, ValueError) as error:
                raise BadCertificate(f"{path} cannot be read: {_describe_error(error)}") from error

    def __enter__(self) -> OpenFolder:
        return self

    def __exit__(self, *_: object) -> None:
        if self.handle is not None:
            os.close(self.handle)

    def read(self, name: str) -> bytearray:
        """Return the bytes of a file of the folder, which must be a regular file and not a link."""
        data = _read(self.path / name, name, self.handle, self.limits, self.size)
        self.size += len(data)
        return data


def read_file(path: Path, limits: Limits) -> bytearray:
    """Return the bytes of a regular file whose path the user gives; its path may contain links.

    Raises:
        BadCertificate: it cannot be read, is not a regular file, or exceeds a limit.
    """
    return _read(path, path.name, None, limits, 0, links=True)


def _read(path: Path, name: str, folder: int | None, limits: Limits, size: int, *, links: bool = False) -> bytearray:
    try:
        flags = _FLAGS if links else _FLAGS | _NO_FOLLOW
        if not links and path.is_symlink():  # O_NOFOLLOW, where available, closes the race after this
            raise BadCertificate(f"{name} is a link; a certificate folder holds regular files only")
        handle = os.open(path, flags) if folder is None else os.open(name, flags, dir_fd=folder)
        try:
            return _read_whole(handle, name, limits, size)
        finally:
            os.close(handle)
    except (OSError, *MALFORMED) as error:
        raise BadCertificate(f"{name} cannot be read: {_describe_error(error)}") from error


def _read_whole(handle: int, name: str, limits: Limits, size: int) -> bytearray:
    """Return the bytes of an open regular file whose size must not change; `size`: bytes of files read before."""
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


def _describe_error(error: BaseException) -> str:
    if isinstance(error, OSError):
        if error.errno == errno.ELOOP:
            return "it is a link; a certificate folder holds regular files only"
        return error.strerror or type(error).__name__
    return escape(str(error), VALUE)


# JSON -------------------------------------------------------------------------------------------------------------


def parse_json(text: bytes | bytearray | str, name: str, limits: Limits) -> Any:
    """Return the value of an unambiguous JSON text.

    Args:
        text: UTF-8.
        name: name of the file, for error messages.
        limits: the text may take an eighth of the memory.

    Raises:
        BadCertificate: it is not JSON, has a duplicate key, a number outside the range of float64, an integer of more
            than 1,000 digits, nesting deeper than 32, or a string with characters that cannot be printed.
    """
    limits.check_memory(JSON_PART * JSON_MEMORY * len(text), f"the JSON of {name}")
    limits.check_work(JSON_WORK * len(text), f"the JSON of {name}")
    try:
        whole = text if isinstance(text, str) else text.decode("utf-8")
        value = json.loads(
            whole,
            object_pairs_hook=_reject_duplicates,
            parse_constant=_reject_constant,
            parse_float=_parse_float,
            parse_int=_parse_integer,
        )
        _check_value(value)
    except MALFORMED as error:
        message = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise BadCertificate(f"{name} cannot be read: {escape(message, 2 * VALUE)}") from error
    return value


class _Rejected(ValueError):
    """An error of this module, whose message has quoted all text from the file."""


def _reject_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        duplicate, _ = collections.Counter(key for key, _ in pairs).most_common(1)[0]
        raise _Rejected(f"duplicate key {quote(duplicate)}")
    return found


def _reject_constant(text: str) -> float:
    raise _Rejected(f"{text} is not a JSON number")


def _parse_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number) or (number == 0 and re.search("[1-9]", re.split("[eE]", text)[0])):
        raise _Rejected(f"the number {quote(text)} is outside the range of float64")
    return number


def _parse_integer(text: str) -> int:
    if len(text) > DIGITS:
        raise _Rejected(f"an integer of {len(text)} digits")
    return int(text)


def _check_value(value: Any) -> None:
    """Check the depth and the strings of a JSON value."""
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
                raise _Rejected(f"the string {quote(member)} has characters that cannot be printed")
        level = below
        if not level:
            return
    raise _Rejected(f"it is nested deeper than {DEPTH} levels")


def check_name(name: str) -> None:
    """Raise ValueError if a key or the name of a tensor is too long or cannot be printed."""
    if len(name) > NAME or not is_printable(name):
        raise _Rejected(f"the name {quote(name)} is too long or has characters that cannot be printed")


# safetensors ------------------------------------------------------------------------------------------------------


def parse_arrays(
    data: bytearray, name: str, limits: Limits, *, allowed: tuple[str, ...] | None = None
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Return the arrays of a safetensors file, as views of its bytes, and the JSON under `expunge` in its metadata.

    Args:
        data: the bytes of the file.
        name: name of the file, for error messages.
        limits: memory and work limits.
        allowed: keys of the metadata; others are refused.

    Raises:
        BadCertificate: the file is incomplete, has bytes that belong to no array or to two, or its header or metadata
            are not valid JSON (see `parse_json`).
    """
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8:
        raise BadCertificate(f"{name} cannot be read: it is not a complete safetensors file")
    header = parse_json(bytes(memoryview(data)[8 : 8 + length]), name, limits)
    try:
        metadata = header.pop("__metadata__", {}) if isinstance(header, dict) else None
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise _Rejected("its header is not that of a safetensors file")
        arrays, end = {}, 8 + length
        for key, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            arrays[key] = _decode_array(data, key, entry, end, 8 + length)
            end = 8 + length + entry["data_offsets"][1]
        if end != len(data):
            raise _Rejected("it has bytes that belong to no tensor, or is incomplete")
    except MALFORMED as error:
        message = str(error) if isinstance(error, _Rejected) else repr(error)
        raise BadCertificate(f"{name} cannot be read: {escape(message, 2 * VALUE)}") from error
    if allowed is not None and set(metadata) - set(allowed):
        raise BadCertificate(f"{name} has metadata that its format does not know")
    parsed = parse_json(metadata.get("expunge", "{}"), f"the metadata of {name}", limits)
    if not isinstance(parsed, dict):
        raise BadCertificate(f"{name} has damaged metadata")
    return arrays, parsed


def _decode_array(data: bytearray, name: str, entry: Any, start: int, base: int) -> NDArray[Any]:
    if set(entry) != {"dtype", "shape", "data_offsets"} or entry["dtype"] not in _TYPES:
        raise _Rejected(f"tensor {quote(name)} has an unsupported type")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not all(type(n) is int and 0 <= n < 2**63 for n in (*shape, *offsets)) or len(offsets) != 2:
        raise _Rejected(f"tensor {quote(name)} has a damaged entry")
    kind, count = np.dtype(_TYPES[entry["dtype"]]), math.prod(shape) if len(shape) <= AXES else -1
    if base + offsets[0] != start or offsets[1] - offsets[0] != count * kind.itemsize or base + offsets[1] > len(data):
        raise _Rejected(f"tensor {quote(name)} does not fit its bytes")
    return np.frombuffer(data, kind, count, start).reshape(shape)
