"""Load weights from a safetensors file into a copy of a model, with exact errors if they do not fit."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import torch
from torch import nn

from expunge.core.errors import ModelError
from expunge.core.files import PathLike
from expunge.core.hashing import plain_name, plain_names
from expunge.core.trained import clone_model, plain_state
from expunge.models.named import convert_names
from expunge.models.normalise import Normalised

from .folders import find_prefix, read_weights

_SHOWN = 3
_OF_MODEL, _OF_FILE = ((f" of the {where} is", f" of the {where} are") for where in ("model", "file"))


def load_weights(model: nn.Module, path: PathLike) -> nn.Module:
    """Load the weights and buffers of a safetensors file into a copy of a model; `model` is not modified.

    Names are compared without the prefixes of DDP, Fabric and torch.compile, and without one that all names of the file
    have (`model.` in Lightning). Optional in the file are
    `num_batches_tracked`, the normalisation statistics (if missing, those of the architecture stay), and all but one
    name of tied weights. Floats are converted to the type of the model. A conversion may round, but neither overflow
    nor turn a weight into 0; integers must keep their values.

    Args:
        model: the network.
        path: the safetensors file, or a folder of `save_pretrained`.

    Raises:
        FileError: the file is missing, truncated, a pickle, or of another format.
        ModelError: tensors are missing, unexpected, of another shape or type, or have NaN or infinite values; two of
            them have one name without prefixes; tied tensors have different values; a value cannot be converted.

    Example:
        >>> from safetensors.torch import save_file
        >>> model = nn.Linear(2, 1)
        >>> save_file({"weight": torch.ones(1, 2), "bias": torch.zeros(1)}, "weights.safetensors")
        >>> load_weights(model, "weights.safetensors").weight.tolist()
        [[1.0, 1.0]]
    """
    return load_tensors(model, read_weights(path)[0], path)


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
    found = match_names(tensors, loaded, path)
    _add_optional(found, target)
    _check_names(found, target, path)
    parameters = plain_names(dict(loaded.named_parameters(remove_duplicate=False)))
    _check_values(found, target, parameters, path)
    with torch.no_grad():
        for name, tensor in found.items():
            target[name].copy_(tensor)
        for name, tensor in found.items():
            if not torch.equal(target[name], tensor.to(target[name].dtype)):
                raise ModelError(
                    "the model stores this tensor together with another one (they are tied), but the file has "
                    "different values for them",
                    where=f"{path}: {name}",
                    hint="keep one of the two in the file, or name an architecture that does not tie them",
                )
    return loaded


def match_names(
    tensors: Mapping[str, torch.Tensor], model: nn.Module, path: PathLike | None = None
) -> dict[str, torch.Tensor]:
    """Rename tensors to the names in the model: without prefixes, and with `network.` if the model is `Normalised`.

    A prefix that all names of the file have, and the model has not, is left out (`model.` in Lightning).

    Args:
        tensors: weights and buffers by name.
        model: the network.
        path: their file, for error messages.

    Raises:
        ModelError: two tensors get the same name, so one would be lost (the copies of a moving average, for example).

    Example:
        >>> list(match_names({"module.weight": torch.ones(1, 2)}, nn.Linear(2, 1)))
        ['weight']
    """
    target = plain_state(model) if isinstance(model, Normalised) else {}
    prefix = find_weight_prefix(tensors, model)
    if hasattr(model, "from_pretrained"):
        tensors, prefix = convert_names({name.removeprefix(prefix): t for name, t in tensors.items()}, model), ""
    found: dict[str, torch.Tensor] = {}
    origin: dict[str, str] = {}
    for name, tensor in tensors.items():
        matched = _add_prefix(plain_name(name.removeprefix(prefix)), target)
        if matched in found:
            raise ModelError(
                f"{origin[matched]} and {name} are one weight of the model without the prefixes of wrappers",
                where=matched if path is None else f"{path}: {matched}",
                hint="write one copy to the file (a moving average belongs in a file of its own)",
            )
        found[matched], origin[matched] = tensor, name
    return found


def find_weight_prefix(names: Collection[str], model: nn.Module) -> str:
    """The prefix that all names of a file have before those of the model, as they are written; "" if there is none.

    Args:
        names: of the tensors in the file.
        model: the network.

    Example:
        >>> find_weight_prefix(["model.weight", "model.bias"], nn.Linear(2, 1))
        'model.'
    """
    known = {*model.state_dict(), *plain_state(model)}
    inner = isinstance(model, Normalised)
    return find_prefix(names, lambda name: name in known or (inner and f"network.{name}" in known))


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


def _count_tensors(names: Collection[str], one: str, several: str) -> str:
    return f"{len(names)} tensor{one if len(names) == 1 else 's' + several}"


def _list_some(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + more


def _check_names(found: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor], path: PathLike) -> None:
    missing = [name for name in target if name not in found]
    unexpected = [name for name in found if name not in target]
    parts = []
    if missing:
        parts.append(f"{_count_tensors(missing, *_OF_MODEL)} missing in the file ({_list_some(missing)})")
    if unexpected:
        parts.append(f"{_count_tensors(unexpected, *_OF_FILE)} unknown to the model ({_list_some(unexpected)})")
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
        other_rows = any(tensor.dim() and found[name].shape[:1] != tensor.shape[:1] for name, tensor in target.items())
        if only_last and other_rows:
            hint = "only the last layer differs: wrong number of classes"
        elif all(_fits_inside(found[name], tensor) for name, tensor in target.items()):
            hint = (
                "no tensor of the file is larger than that of the model: other options, or a network that another tool "
                "made physically smaller; then name a factory with its widths, or use the masked network from which "
                "it was cut"
            )
        raise ModelError(
            f"{_count_tensors(shapes, ' has', ' have')} another shape ({'; '.join(shapes[:_SHOWN])})",
            where=path,
            hint=hint,
        )


def _fits_inside(small: torch.Tensor, large: torch.Tensor) -> bool:
    return small.dim() == large.dim() and all(a <= b for a, b in zip(small.shape, large.shape, strict=True))


def _check_values(
    found: Mapping[str, torch.Tensor],
    target: Mapping[str, torch.Tensor],
    parameters: Collection[str],
    path: PathLike,
) -> None:
    """Raise ModelError for values that are not finite, and for types that the model's types cannot represent."""
    bad = {}
    for name, tensor in found.items():
        wanted, where = target[name].dtype, f"{path}: {name}"
        have, need = (str(dtype).removeprefix("torch.") for dtype in (tensor.dtype, wanted))
        if wanted.is_floating_point and not tensor.is_floating_point():
            raise ModelError(f"has {have} values, but the model has floats", where=where)
        if not (wanted.is_floating_point or wanted.is_complex) and (tensor.is_floating_point() or tensor.is_complex()):
            raise ModelError(
                f"has {have} values, but the model has {need}",
                where=where,
                hint="conversion would cut off decimals; write the tensor with the type that the model has",
            )
        try:
            finite = torch.isfinite(tensor)
            converted = tensor.to(wanted)
            restored = converted.to(tensor.dtype)
            changed = restored != tensor
        except (NotImplementedError, RuntimeError, TypeError) as error:
            raise ModelError(
                f"has {have} values, with which torch does not compute",
                where=where,
                hint="convert the file to float32 or float16; a scale that belongs to the values must be applied",
            ) from error
        if not bool(finite.all()):
            bad[name] = int((~finite).sum())
        elif not tensor.is_floating_point():
            if bool(changed.any()):
                raise ModelError(f"has {have} values that do not fit the {need} of the model", where=where)
        elif not bool(torch.isfinite(converted).all()):
            raise ModelError(
                f"has values up to {float(tensor.abs().max()):.3g}, which the {need} of the model cannot represent",
                where=where,
                hint="the weights are not those of a network that was trained in this type",
            )
        elif name in parameters:
            lost = int(((converted == 0) & (tensor != 0)).sum())
            if lost:
                raise ModelError(
                    f"{lost} values are not 0 in the file ({have}), but would be 0 in the {need} of the model",
                    where=where,
                    hint="set them to 0 in the file if they are pruned; otherwise they would count as pruned",
                )
    if bad:
        half = any(found[name].dtype == torch.float16 for name in bad)
        raise ModelError(
            f"the weights have NaN or infinite values ({sum(bad.values())} in {_list_some(bad)})",
            where=path,
            hint="their training diverged, or they were larger than 65,504 when they were converted to float16"
            if half
            else "their training diverged; no method can use these weights",
        )
