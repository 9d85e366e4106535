"""Check of the header of a safetensors file before loading it: sizes, types, shapes, offsets."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from expunge.core.errors import FileError

from .limits import BYTES, DIMENSIONS, HEADER_BYTES, TENSORS
from .strict_json import parse_json

#: The tensor types that expunge reads, and their sizes in bytes.
_SIZES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_AGAIN = "it is truncated or of another format; copy it again or export it with safetensors.torch.save_file"


def check_header(file: IO[bytes], path: Path) -> None:
    """Raise FileError unless the file is a complete safetensors file of tensors that expunge reads.

    Format: 8 bytes with the length of the header (little-endian), the header (a JSON object of names to `dtype`,
    `shape` and `data_offsets`, and of `__metadata__` to strings), then the values.

    Raises:
        FileError: the file is above the limits, or its header is damaged or inconsistent.
    """
    size = os.fstat(file.fileno()).st_size
    BYTES.check(size, "is", where=path)
    file.seek(0)
    head = file.read(8)
    length = int.from_bytes(head, "little")
    if len(head) < 8 or length > size - 8:
        raise FileError(
            f"is not a complete safetensors file (a header of {length} bytes in a file of {size})",
            where=path,
            hint=_AGAIN,
        )
    HEADER_BYTES.check(length, "has a header of", where=path)
    try:
        text = file.read(length).decode("utf-8")
    except UnicodeDecodeError as error:
        raise FileError(f"is not a complete safetensors file ({error})", where=path, hint=_AGAIN) from error
    TENSORS.check(text.count('"dtype"'), "has", where=path)
    header = parse_json(text, where=f"{path}: header")
    if not isinstance(header, Mapping):
        raise FileError("is not a complete safetensors file (the header is not a mapping)", where=path, hint=_AGAIN)
    spans = sorted(
        (*_read_span(entry, f"{path}: {name[:60]}"), name) for name, entry in header.items() if name != "__metadata__"
    )
    at = 0
    for begin, end, name in spans:
        if begin != at:
            fault = "overlap" if begin < at else "leave a gap"
            raise FileError(f"its data offsets {fault} ({begin}, expected {at})", where=f"{path}: {name[:60]}")
        at = end
    if at != size - 8 - length:
        raise FileError(
            f"is not a complete safetensors file (tensors of {at} bytes, but {size - 8 - length} bytes of values)",
            where=path,
            hint=_AGAIN,
        )


def _read_span(entry: Any, where: str) -> tuple[int, int]:
    """Read the first byte of a tensor and the byte after its last."""
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise FileError("the header of a safetensors file does not describe the tensor", where=where) from error
    if not isinstance(dtype, str) or dtype not in _SIZES:
        raise FileError(
            f"tensors of type {str(dtype)[:20]!r} are not read",
            where=where,
            hint=f"convert it to one of {', '.join(_SIZES)}; apply a scale that belongs to its values",
        )
    if not isinstance(shape, list) or not all(_is_size(n) for n in shape) or len(shape) > DIMENSIONS:
        raise FileError(
            f"a shape is at most {DIMENSIONS} integers from 0, not {str(shape)[:60]}", where=where, hint=_AGAIN
        )
    if not (_is_size(begin) and _is_size(end)) or end - begin != math.prod(shape) * _SIZES[dtype]:
        raise FileError(
            f"is not a complete safetensors file (shape {shape} of {dtype} does not take the bytes "
            f"{str(begin)[:20]} to {str(end)[:20]})",
            where=where,
            hint=_AGAIN,
        )
    return begin, end


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
