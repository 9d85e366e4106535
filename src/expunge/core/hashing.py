"""SHA-256 of values: JSON, arrays and named tensors.

A hash is computed from values, not from files: two files with equal tensors have equal hashes. The canonical forms are
in `docs/formats/hashes.md`. Importing this module does not import torch.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from .errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch import nn

T = TypeVar("T")
_WRAPPERS = ("_forward_module", "_original_module", "_orig_mod")


def hash_bytes(*parts: bytes) -> str:
    """Hex SHA-256 of the parts, each preceded by its length (8 bytes, little-endian)."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def hash_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of the bytes of a file, as `sha256sum` prints it.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no spaces and no NaN: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "__fspath__"):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no canonical JSON form")


def hash_json(value: Any) -> str:
    """Hex SHA-256 of the canonical JSON of a value (docs/formats/hashes.md).

    Args:
        value: JSON values, numpy numbers and arrays, sets (sorted), paths.

    Raises:
        TypeError: a value has no canonical JSON form.
        ValueError: a number is NaN or infinite.

    Example:
        >>> hash_json({"b": 1, "a": [2]}) == hash_json({"a": [2], "b": 1})
        True
        >>> hash_json({"a": 1})[:8], len(hash_json({"a": 1}))
        ('0cb17a3c', 64)
    """
    return hash_bytes(canonical_json(value).encode())


def hash_training_set(ids: Iterable[str], corrections: Iterable[str] = ()) -> str:
    """SHA-256 of what a model was trained on; the order of the ids does not matter.

    Args:
        ids: of the training records.
        corrections: hashes of the corrections of their values, in order.
    """
    corrected = list(corrections)
    return hash_json({"train": sorted(map(str, ids)), **({"corrections": corrected} if corrected else {})})


def hash_text_parts(parts: Callable[[], Iterable[str]]) -> str:
    """`hash_bytes` of a text that is made in parts, twice, and never held as a whole.

    Args:
        parts: returns the same parts at each call.
    """
    digest = hashlib.sha256(sum(len(part.encode()) for part in parts()).to_bytes(8, "little"))
    for part in parts():
        digest.update(part.encode())
    return digest.hexdigest()


def hash_array(array: np.ndarray) -> str:
    """Hex SHA-256 of dtype, shape and elements (row-major, little-endian); strings are hashed as UTF-8.

    Args:
        array: numbers, bools or strings of any shape.

    Example:
        >>> a = np.arange(6, dtype=np.int64).reshape(2, 3)
        >>> hash_array(a) == hash_array(np.asfortranarray(a)), hash_array(a) == hash_array(a.reshape(3, 2))
        (True, False)
    """
    if array.dtype.kind in "UO":
        return hash_bytes(b"text", *(str(item).encode() for item in array.ravel()), str(array.shape).encode())
    array = np.asarray(array, order="C")  # ascontiguousarray would turn shape () into (1,)
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return hash_bytes(array.dtype.name.encode(), str(tuple(array.shape)).encode(), array.tobytes())


def hash_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    """Hex SHA-256 of named arrays; the order of the names does not matter."""
    return hash_json({name: hash_array(array) for name, array in arrays.items()})


def plain_name(name: str) -> str:
    """A parameter name without the prefixes that DDP, Fabric and torch.compile add to it."""
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    while len(parts) > 1 and parts[0] == "module":
        parts = parts[1:]
    return ".".join(parts)


def plain_names(named: Mapping[str, T]) -> dict[str, T]:
    """The same values under their plain names.

    Raises:
        ModelError: two plain names are equal, so a value would be lost.
    """
    plain = {plain_name(name): value for name, value in named.items()}
    if len(plain) < len(named):
        names = [plain_name(name) for name in named]
        duplicate = next(name for name in names if names.count(name) > 1)
        raise ModelError(
            "two weights have this name without the prefixes of wrappers",
            where=duplicate,
            hint="do not name a submodule `module` if there are others: data-parallel wrappers add that prefix",
        )
    return plain


def plain_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a model under their plain names, as masks and saved states use them."""
    return plain_names(dict(model.named_parameters()))


def hash_tensor(tensor: torch.Tensor) -> str:
    """Hex SHA-256 of dtype, shape and bytes of a tensor on any device; -0.0 and 0.0 differ.

    Example:
        >>> import torch
        >>> hash_tensor(torch.tensor([0.0])) == hash_tensor(torch.tensor([-0.0]))
        False
    """
    import torch

    flat = tensor.detach().to("cpu", memory_format=torch.contiguous_format).reshape(-1)
    data = b"" if flat.numel() == 0 else flat.view(torch.uint8).numpy().tobytes()
    dtype = str(tensor.dtype).removeprefix("torch.")
    return hash_bytes(dtype.encode(), str(tuple(tensor.shape)).encode(), data)


def hash_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """Hex SHA-256 of named tensors (a state dict); the prefixes of wrappers and the order do not matter.

    Raises:
        ModelError: two names are equal without the prefixes of wrappers.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1)
        >>> wrapped = torch.nn.DataParallel(model)
        >>> hash_tensors(model.state_dict()) == hash_tensors(wrapped.state_dict())
        True
    """
    return hash_json({name: hash_tensor(tensor) for name, tensor in plain_names(tensors).items()})
