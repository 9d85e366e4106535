"""Load weights from a safetensors file into a copy of a model, or say exactly why not."""

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
    """A new model with the weights and buffers of a safetensors file; `model` is not touched.

    Names are compared without the prefixes of DDP, Fabric and torch.compile. A file need not hold
    `num_batches_tracked`, nor the constants of the input normalisation (those of the architecture then stay; where the
    file holds them, the file's are taken), nor the second name of tied weights. Half-precision floats are widened.

    Raises:
        FileError: the file is missing, truncated, a pickle, or of another format.
        ModelError: tensors are missing, unexpected or of another shape or kind, or hold NaN or infinite values.
    """
    return load_tensors(model, read_tensors(path)[0], path)


def load_tensors(model: nn.Module, tensors: Mapping[str, torch.Tensor], path: PathLike) -> nn.Module:
    """A new model with these weights and buffers, read from `path`; see `load_weights`."""
    twin = clone_model(model)
    target = plain_state(twin)
    found = own_names(tensors, twin)
    _complete(found, target)
    _check_names(found, target, path)
    _check_values(found, target, path)
    with torch.no_grad():
        for name, tensor in found.items():
            target[name].copy_(tensor)
    return twin


def own_names(tensors: Mapping[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors under the names that the model has for them: without prefixes, behind its input normalisation."""
    found = {plain_name(name): tensor for name, tensor in tensors.items()}
    if isinstance(model, Normalised):
        target = plain_state(model)
        found = {_inside(name, target): tensor for name, tensor in found.items()}
    return found


def _inside(name: str, target: Mapping[str, torch.Tensor]) -> str:
    """The name that a tensor of a user's network has behind the input normalisation."""
    return f"network.{name}" if name not in target and f"network.{name}" in target else name


def _complete(found: dict[str, torch.Tensor], target: Mapping[str, torch.Tensor]) -> None:
    """Fill in what a file may leave out."""
    held = {(t.data_ptr(), t.shape, t.stride()): found[name] for name, t in target.items() if name in found}
    for name, tensor in target.items():
        if name in found:
            continue
        tied = held.get((tensor.data_ptr(), tensor.shape, tensor.stride())) if tensor.numel() else None
        if tied is not None:
            found[name] = tied
        elif name.endswith("num_batches_tracked") or name in ("normalise.mean", "normalise.deviation"):
            found[name] = tensor.clone()


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + more


def _check_names(found: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor], path: PathLike) -> None:
    missing = [name for name in target if name not in found]
    unexpected = [name for name in found if name not in target]
    parts = []
    if missing:
        parts.append(f"{len(missing)} tensors of the model are missing in the file ({_some(missing)})")
    if unexpected:
        parts.append(f"{len(unexpected)} tensors of the file are unknown to the model ({_some(unexpected)})")
    if parts:
        hint = "name the architecture, and the options, that the weights were trained with"
        if any(name.endswith(("weight_orig", "weight_mask")) for name in unexpected):
            hint = (
                "the file holds torch.nn.utils.prune tensors; expunge.adopt_weights and model.weights read their masks"
            )
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
                "no tensor of the file is larger than the model's: other options, or a network made physically smaller "
                "elsewhere; then name a factory with its widths, or bring the masked network that it was cut from"
            )
        raise ModelError(
            f"{len(shapes)} tensors have another shape ({'; '.join(shapes[:_SHOWN])})", where=path, hint=hint
        )


def _fits_inside(small: torch.Tensor, large: torch.Tensor) -> bool:
    return small.dim() == large.dim() and all(a <= b for a, b in zip(small.shape, large.shape, strict=True))


def _check_values(found: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor], path: PathLike) -> None:
    for name, tensor in found.items():
        if target[name].is_floating_point() and not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ModelError(f"holds {kind} values where the model has floats", where=f"{path}: {name}")
    bad = {name: int((~torch.isfinite(t)).sum()) for name, t in found.items() if t.is_floating_point()}
    bad = {name: count for name, count in bad.items() if count}
    if bad:
        raise ModelError(
            f"the weights hold NaN or infinite values ({sum(bad.values())} in {_some(bad)})",
            where=path,
            hint="the training that made them diverged; no method can work from these weights",
        )
