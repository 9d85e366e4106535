"""What a traced graph of a network depends on: its layers and their settings, not the values of its weights."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import nn

#: Attributes of a module that hold tensors, submodules and the mode; a trace is made in evaluation mode.
_HELD = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training")


def structure_key(model: nn.Module) -> Hashable | None:
    """A key that is equal for networks of equal structure.

    It has the class and the plain attributes (numbers, strings, tuples of them) of every submodule, and names, shapes
    and types of all tensors, with tensors that are used twice.

    Returns:
        None if a submodule has an attribute of another type, or hooks: it may change what the network does.
    """
    seen: dict[int, int] = {}
    found: list[Hashable] = []
    for name, module in model.named_modules(remove_duplicate=False):
        settings = {key: value for key, value in vars(module).items() if key not in _HELD}
        if not all(_is_plain(value) or (key.endswith("hooks") and not value) or key.endswith("_with_kwargs")
                   or key == "_forward_hooks_always_called" for key, value in settings.items()):  # fmt: skip
            return None
        plain = tuple((key, _freeze(value)) for key, value in sorted(settings.items()) if _is_plain(value))
        tensors = tuple(
            (kind, key, None if tensor is None else (tuple(tensor.shape), str(tensor.dtype)), _number(seen, tensor))
            for kind, held in (("parameter", module._parameters), ("buffer", module._buffers))
            for key, tensor in held.items()
        )
        found.append((name, type(module), _number(seen, module), plain, tensors))
    return tuple(found)


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str | torch.dtype)


def _freeze(value: Any) -> Hashable:
    """The value with its type: 1, 1.0 and True are different settings."""
    return (type(value), tuple(map(_freeze, value)) if isinstance(value, tuple | list) else value)


def _number(seen: dict[int, int], value: object) -> int:
    """A number for each object, in the order in which they are met."""
    return seen.setdefault(id(value), len(seen))
