"""A second device that every machine has: tensors that lie on a CPU and say that they lie elsewhere.

It behaves as CUDA does towards a program: an operation on tensors of both devices is an error (but for numbers,
indices and copies), a CPU generator cannot draw there, numpy cannot read from there. So a forgotten `.to(device)` shows
without a GPU. What it computes is what the CPU computes. It registers itself with PyTorch for the whole process, before
any backward pass: import it in a process of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend("far")
FAR = torch.device("far:0")
aten = torch.ops.aten
COPIES = (aten.copy_.default, aten._copy_from.default)
INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._unsafe_index.Tensor)
counted = {"operations": 0}


class Far(torch.Tensor):
    """A tensor of the second device; `here` holds its values."""

    here: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, here: torch.Tensor) -> Far:
        made: Far = torch.Tensor._make_wrapper_subclass(
            cls, here.shape, strides=here.stride(), storage_offset=here.storage_offset(), dtype=here.dtype, device=FAR
        )
        made.here = here
        return made

    def __repr__(self, **_: Any) -> str:
        return f"far({self.here})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(kind is not Far for kind in types):
            return NotImplemented
        counted["operations"] += 1
        return _run(func, args, dict(kwargs or {}))


def _here(value: Any) -> Any:
    return value.here if isinstance(value, Far) else value


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if func is aten._to_copy.default:
        device = kwargs.pop("device", None)
        moved = func(_here(args[0]), **kwargs)
        return moved if device is not None and torch.device(device).type == "cpu" else Far(moved)
    if func in COPIES:
        into, source = (args[0], args[1]) if func is COPIES[0] else (args[1], args[0])
        _here(into).copy_(_here(source))
        return into
    _check(func, args, kwargs)
    device = kwargs.get("device")
    if device is not None:
        kwargs["device"] = torch.device("cpu")
    found = func(*tree_map(_here, args), **tree_map(_here, kwargs))
    if device is not None and torch.device(device).type == "cpu":
        return found
    same = {id(value.here): value for value in tree_leaves((args, kwargs)) if isinstance(value, Far)}
    return tree_map(lambda t: same.get(id(t), Far(t)) if type(t) is torch.Tensor else t, found)


def _check(func: Any, args: Any, kwargs: dict[str, Any]) -> None:
    """Raise RuntimeError where CUDA would: tensors of two devices, or a generator of the CPU."""
    generator = kwargs.get("generator")
    if generator is not None and generator.device.type != FAR.type:
        raise RuntimeError(f"Expected a 'far' device type for generator but found '{generator.device.type}' ({func})")
    for value in tree_leaves((args, kwargs)):
        if isinstance(value, torch.Tensor) and not isinstance(value, Far) and value.dim() > 0:
            index = func in INDEXED and value is not args[0] and value.dtype in (torch.int64, torch.bool)
            if not index:
                raise RuntimeError(f"Expected all tensors to be on the same device, but found far:0 and cpu ({func})")


_library = torch.library.Library("aten", "IMPL")


def _empty(size: Any, *, dtype: Any = None, memory_format: Any = None, **_: Any) -> Far:
    return Far(torch.empty(size, dtype=dtype, memory_format=memory_format or torch.contiguous_format))


def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, **_: Any) -> Far:
    return Far(torch.empty_strided(size, stride, dtype=dtype))


_library.impl("empty.memory_format", _empty, "PrivateUse1")
_library.impl("empty_strided", _empty_strided, "PrivateUse1")
