"""SHA-256 over contents: JSON values, arrays and named tensors.

A hash is over bytes of values, never over files: two files with the same tensors hash alike. The canonical forms are in
`docs/formats/hashes.md`. Nothing here imports torch at import time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from .errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch import nn

T = TypeVar("T")
_WRAPPERS = ("_forward_module", "_original_module", "_orig_mod")


def hash_bytes(*parts: bytes) -> str:
    """Hex SHA-256 of the parts, each preceded by its length (so that parts cannot run into each other)."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no spaces and no NaN: one text for one value."""
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
    """Hex SHA-256 of the canonical JSON of a value."""
    return hash_bytes(canonical_json(value).encode())


def hash_array(array: np.ndarray) -> str:
    """Hex SHA-256 of dtype, shape and C-ordered little-endian bytes. Text arrays hash by their UTF-8 strings."""
    if array.dtype.kind in "UO":
        return hash_bytes(b"text", *(str(item).encode() for item in array.ravel()), str(array.shape).encode())
    array = np.asarray(array, order="C")  # ascontiguousarray would turn shape () into (1,)
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return hash_bytes(array.dtype.name.encode(), str(tuple(array.shape)).encode(), array.tobytes())


def hash_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    """Hex SHA-256 of named arrays; their order does not matter."""
    return hash_json({name: hash_array(array) for name, array in arrays.items()})


def plain_name(name: str) -> str:
    """A parameter name without the prefixes that DDP, Fabric and torch.compile put before or inside it."""
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    while len(parts) > 1 and parts[0] == "module":
        parts = parts[1:]
    return ".".join(parts)


def plain_names(named: Mapping[str, T]) -> dict[str, T]:
    """The same values under their plain names.

    Raises:
        ModelError: two names become one, so that a value would be lost.
    """
    plain = {plain_name(name): value for name, value in named.items()}
    if len(plain) < len(named):
        names = [plain_name(name) for name in named]
        twice = next(name for name in names if names.count(name) > 1)
        raise ModelError(
            "two weights have this name once the prefixes of wrappers are gone",
            where=twice,
            hint="do not call a submodule `module` beside others: that is the prefix that data-parallel wrappers add",
        )
    return plain


def plain_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a model under their plain names, which are those of masks and of saved states."""
    return plain_names(dict(model.named_parameters()))


def hash_tensor(tensor: torch.Tensor) -> str:
    """Hex SHA-256 of dtype, shape and bytes of a tensor, wherever it lives (-0.0 and 0.0 differ)."""
    import torch

    flat = tensor.detach().to("cpu", memory_format=torch.contiguous_format).reshape(-1)
    data = b"" if flat.numel() == 0 else flat.view(torch.uint8).numpy().tobytes()
    dtype = str(tensor.dtype).removeprefix("torch.")
    return hash_bytes(dtype.encode(), str(tuple(tensor.shape)).encode(), data)


def hash_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """Hex SHA-256 of named tensors (a state dict); wrapper prefixes and order do not matter."""
    return hash_json({name: hash_tensor(tensor) for name, tensor in plain_names(tensors).items()})
