"""Load weights from a safetensors file into a copy of a model, with exact errors if they do not fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from expunge.core.errors import ModelError
from expunge.core.files import PathLike, read_tensors
from expunge.core.hashing import plain_name
from expunge.core.trained import clone_model, plain_state

from .normalise import Normalised

_SHOWN = 3


def load_weights(model: nn.Module, path: PathLike) -> nn.Module:
    """Load the weights and buffers of a safetensors file into a copy of a model; `model` is not modified.

    Names are compared without the prefixes of DDP, Fabric and torch.compile. Optional in the file are
    `num_batches_tracked`, the normalisation statistics (if missing, those of the architecture stay), and all but one
    name of tied weights. Half-precision floats are converted to float32.

    Args:
        model: the network.
        path: the safetensors file.

    Raises:
        FileError: the file is missing, truncated, a pickle, or of another format.
        ModelError: tensors are missing, unexpected, of another shape or type, or have NaN or infinite values.

    Example:
        >>> from safetensors.torch import save_file
        >>> model = nn.Linear(2, 1)
        >>> save_file({"weight": torch.ones(1, 2), "bias": torch.zeros(1)}, "weights.safetensors")
        >>> load_weights(model, "weights.safetensors").weight.tolist()
        [[1.0, 1.0]]
    """
    return load_tensors(model, read_tensors(path)[0], path)


def load_tensors(model: nn.Module, tensors: Mapping[str, torch.Tensor], path: PathLike) -> nn.Module:
    """Load tensors that were read from `path` into a copy of a model; see `load_weights`.

    Args:
        model: the network; not modified.
        tensors: weights and buffers by name.
        path: their file, for error messages.

    Raises:
        ModelError: see `load_weights`.

    Example:
        >>> tensors = {"weight": torch.ones(1, 2), "bias": torch.zeros(1)}
        >>> load_tensors(nn.Linear(2, 1), tensors, "weights.safetensors").bias.tolist()
        [0.0]
    """
    loaded = clone_model(model)
    target = plain_state(loaded)
    found = match_names(tensors, loaded)
    _add_optional(found, target)
    _check_names(found, target, path)
    _check_values(found, target, path)
    with torch.no_grad():
        for name, tensor in found.items():
            target[name].copy_(tensor)
    return loaded


def match_names(tensors: Mapping[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """Rename tensors to the names in the model: without prefixes, and with `network.` if the model is `Normalised`.

    Args:
        tensors: weights and buffers by name.
        model: the network.

    Example:
        >>> list(match_names({"module.weight": torch.ones(1, 2)}, nn.Linear(2, 1)))
        ['weight']
    """
    found = {plain_name(name): tensor for name, tensor in tensors.items()}
    if isinstance(model, Normalised):
        target = plain_state(model)
        found = {_add_prefix(name, target): tensor for name, tensor in found.items()}
    return found


def _add_prefix(name: str, target: Mapping[str, torch.Tensor]) -> str:
    """Return the name that a tensor of a custom network has behind the input normalisation."""
    return f"network.{name}" if name not in target and f"network.{name}" in target else name


def _add_optional(found: dict[str, torch.Tensor], target: Mapping[str, torch.Tensor]) -> None:
    """Add the tensors that are optional in a file."""
    given = {(t.data_ptr(), t.shape, t.stride()): found[name] for name, t in target.items() if name in found}
    for name, tensor in target.items():
        if name in found:
            continue
        tied = given.get((tensor.data_ptr(), tensor.shape, tensor.stride())) if tensor.numel() else None
        if tied is not None:
            found[name] = tied
        elif name.endswith("num_batches_tracked") or name in ("normalise.mean", "normalise.deviation"):
            found[name] = tensor.clone()


def _list_some(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + more


def _check_names(found: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor], path: PathLike) -> None:
    missing = [name for name in target if name not in found]
    unexpected = [name for name in found if name not in target]
    parts = []
    if missing:
        parts.append(f"{len(missing)} tensors of the model are missing in the file ({_list_some(missing)})")
    if unexpected:
        parts.append(f"{len(unexpected)} tensors of the file are unknown to the model ({_list_some(unexpected)})")
    if parts:
        hint = "name the architecture, and the options, that the weights were trained with"
        if any(name.endswith(("weight_orig", "weight_mask")) for name in unexpected):
            hint = "the file has torch.nn.utils.prune tensors; expunge.adopt_weights and model.weights read their masks"
        elif all(name.startswith("normalise.") for name in unexpected) and not missing:
            hint = "the weights were trained with input normalisation: build the model with normalise='auto'"
        raise ModelError("the weights do not fit the model: " + "; ".join(parts), where=path, hint=hint)
    shapes = [
        f"{name} is {tuple(found[name].shape)}, the model has {tuple(tensor.shape)}"
        for name, tensor in target.items()
        if found[name].shape != tensor.shape
    ]
    if shapes:
        last = [name for name, tensor in target.items() if tensor.dim() >= 1][-2:]
        only_last = all(found[name].shape == tensor.shape for name, tensor in target.items() if name not in last)
        hint = "name the architecture, and the options, that the weights were trained with"
        if only_last:
            hint = "only the last layer differs: wrong number of classes"
        elif all(_fits_inside(found[name], tensor) for name, tensor in target.items()):
            hint = (
                "no tensor of the file is larger than that of the model: other options, or a network that another tool "
                "made physically smaller; then name a factory with its widths, or use the masked network from which "
                "it was cut"
            )
        raise ModelError(
            f"{len(shapes)} tensors have another shape ({'; '.join(shapes[:_SHOWN])})", where=path, hint=hint
        )


def _fits_inside(small: torch.Tensor, large: torch.Tensor) -> bool:
    return small.dim() == large.dim() and all(a <= b for a, b in zip(small.shape, large.shape, strict=True))


def _check_values(found: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor], path: PathLike) -> None:
    for name, tensor in found.items():
        if target[name].is_floating_point() and not tensor.is_floating_point():
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise ModelError(f"has {dtype} values, but the model has floats", where=f"{path}: {name}")
    bad = {name: int((~torch.isfinite(t)).sum()) for name, t in found.items() if t.is_floating_point()}
    bad = {name: count for name, count in bad.items() if count}
    if bad:
        raise ModelError(
            f"the weights have NaN or infinite values ({sum(bad.values())} in {_list_some(bad)})",
            where=path,
            hint="their training diverged; no method can use these weights",
        )
