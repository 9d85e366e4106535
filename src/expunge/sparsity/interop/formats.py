"""Formats of pruned models: torch.nn.utils.prune state dicts, baked zeros, mask files. Detection, import and export."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from expunge.core.errors import MaskError
from expunge.core.files import PathLike, write_tensors
from expunge.core.hashing import plain_name, plain_parameters
from expunge.core.mask import Mask, MaskProvenance
from expunge.core.reading.file_names import check_format
from expunge.core.show import repr_fields
from expunge.core.trained import clone_model, plain_state
from expunge.sparsity.channels.groups import find_channels, find_kept_units
from expunge.sparsity.channels.layers import LAYER_TYPES, prunable_weights

KIND, VERSION = "expunge.weights", 1
State = dict[str, torch.Tensor]
ORIGINAL_SUFFIX, MASK_SUFFIX = "_orig", "_mask"
#: The largest m of the patterns n:m that are searched for.
MAX_GROUP_SIZE = 16


@dataclasses.dataclass(frozen=True)
class DetectedFormat:
    """The format of a state dict.

    Attributes:
        format: `torch-prune` (`weight_orig` and `weight_mask`), `baked-zeros` or `dense`.
        granularity: `weight`, `filter` or a pattern such as `2:4`; None if dense.
        sparsity: fraction of zeros among the parameters with at least two axes, in [0, 1].
        layer_sparsity: the same by parameter name.
    """

    format: str
    granularity: str | None
    sparsity: float
    layer_sparsity: Mapping[str, float]

    __repr__ = repr_fields

    def to_json(self) -> dict[str, Any]:
        return {
            "format": self.format,
            "granularity": self.granularity,
            "sparsity": self.sparsity,
            "layer_sparsity": dict(self.layer_sparsity),
        }


def is_torch_prune(state: Mapping[str, torch.Tensor]) -> bool:
    """Whether a state dict holds the tensors of `torch.nn.utils.prune` (`<weight>_orig` with `<weight>_mask`)."""
    return any(name.endswith(ORIGINAL_SUFFIX) and _base_name(name) + MASK_SUFFIX in state for name in state)


def _base_name(name: str) -> str:
    return name.removesuffix(ORIGINAL_SUFFIX)


def from_torch_prune(
    state: Mapping[str, torch.Tensor], *, layers: Sequence[str] = (), criterion: str = "unknown", scope: str = "global"
) -> tuple[State, Mask]:
    """Split the state dict of a model with `torch.nn.utils.prune` hooks into plain weights and a mask.

    Args:
        state: state dict with `<weight>_orig` and `<weight>_mask` in place of each pruned weight.
        layers: layer types that were pruned, if known; un-pruning needs them.
        criterion: the criterion, if known.
        scope: the scope, if known.

    Returns:
        Weights under their plain names, masked ones +0.0, and the mask.

    Raises:
        MaskError: one of the two tensors is missing, the shapes differ, a mask has values other than 0 and 1, or two
            weights have one name.

    Example:
        >>> import torch
        >>> from torch.nn.utils import prune
        >>> layer = prune.l1_unstructured(torch.nn.Linear(8, 4), "weight", amount=0.75)
        >>> weights, mask = from_torch_prune(layer.state_dict())
        >>> sorted(weights), mask.sparsity
        (['bias', 'weight'], 0.75)
    """
    if not is_torch_prune(state):
        raise MaskError(
            "the tensors are not those of torch.nn.utils.prune (there is no <weight>_orig with its <weight>_mask)",
            hint="read baked zeros with mask_from_zeros, or a mask file with Mask.load",
        )
    plain: State = {}
    kept: State = {}

    def add(name: str, tensor: torch.Tensor) -> None:
        target = plain_name(name)
        if target in plain:
            raise MaskError(
                "two weights of the file have this name without the prefixes of wrappers and the suffix _orig",
                where=target,
                hint="write one copy to the file",
            )
        plain[target] = tensor

    for name, tensor in state.items():
        if name.endswith(MASK_SUFFIX):
            if name.removesuffix(MASK_SUFFIX) + ORIGINAL_SUFFIX not in state:
                raise MaskError("the mask has no matching weight_orig", where=name)
            continue
        if not (name.endswith(ORIGINAL_SUFFIX) and _base_name(name) + MASK_SUFFIX in state):
            add(name, tensor.detach().clone())
            continue
        mask, target = state[_base_name(name) + MASK_SUFFIX], plain_name(_base_name(name))
        if mask.shape != tensor.shape:
            raise MaskError(f"the mask has shape {tuple(mask.shape)}, the weight {tuple(tensor.shape)}", where=name)
        if not bool(((mask == 0) | (mask == 1)).all()):
            raise MaskError("the mask has values other than 0 and 1", where=_base_name(name) + MASK_SUFFIX)
        kept[target] = mask.detach().cpu().bool()
        add(target, tensor.detach().clone().masked_fill_(mask == 0, 0.0))
    provenance = MaskProvenance(criterion, scope, "weight", tuple(layers), "torch.nn.utils.prune")
    return plain, Mask(kept, provenance)


def to_torch_prune(state: Mapping[str, torch.Tensor], mask: Mask) -> State:
    """Build the state dict of the same model with `torch.nn.utils.prune` hooks.

    Args:
        state: plain weights by name.
        mask: the mask; each weight that it names becomes `<weight>_orig` and `<weight>_mask`.

    Raises:
        MaskError: the mask names a weight that is not in the state dict.

    Example:
        >>> import torch
        >>> from expunge.core.mask import Mask, MaskProvenance
        >>> mask = Mask({"weight": torch.tensor([[True, False]])}, MaskProvenance("magnitude"))
        >>> to_torch_prune({"weight": torch.tensor([[3.0, 0.0]])}, mask)
        {'weight_orig': tensor([[3., 0.]]), 'weight_mask': tensor([[1., 0.]])}
    """
    out: State = {}
    for name, tensor in state.items():
        if name in mask.kept:
            out[name + ORIGINAL_SUFFIX] = tensor.detach().clone()
            out[name + MASK_SUFFIX] = mask.kept[name].to(tensor.dtype)
        else:
            out[name] = tensor.detach().clone()
    missing = [name for name in mask.kept if name not in state]
    if missing:
        raise MaskError("the mask names a weight that the model does not have", where=missing[0])
    return out


def mask_from_zeros(
    model: nn.Module, layers: Sequence[str] = ("conv",), *, criterion: str = "magnitude", scope: str = "global"
) -> Mask:
    """Build the mask of a model with baked zeros: a weight is pruned where it is exactly 0.

    Without this mask, one SGD step would make the zeros nonzero. The mask names the weights of the given layer types,
    and every other parameter with zeros, whatever its layer: transposed convolutions, embeddings, recurrent and
    attention weights, biases, scales, parameters without a layer. A bias or scale (a parameter of at most one axis)
    that is 0 everywhere is left out: it is an initial value, not a pattern (`find_zero_parameters` names these).

    Args:
        model: the network; not modified.
        layers: layer types that were pruned; all their weights are in the mask.
        criterion: the criterion, if known; un-pruning needs it.
        scope: the scope, if known.

    Raises:
        MaskError: no weight is zero, or all weights of a tensor are.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 1))
        >>> with torch.no_grad():
        ...     _ = model[0].weight.copy_(torch.tensor([[0.0, 2.0, -0.0]]))
        >>> mask_from_zeros(model, ("linear",)).kept["0.weight"]
        tensor([[False,  True, False]])
    """
    ranked = prunable_weights(model, layers) if layers else {}
    kept = {name: (weight.detach() != 0).cpu() for name, weight in ranked.items()}
    left_out = find_zero_parameters(model)
    for name, parameter in plain_parameters(model).items():
        nonzero = (parameter.detach() != 0).cpu()
        if name not in kept and name not in left_out and not nonzero.all():
            kept[name] = nonzero
    if all(bool(tensor.all()) for tensor in kept.values()):
        raise MaskError("no weight is exactly zero: the model is dense", hint="prune it first, or give a mask file")
    empty = [name for name, tensor in kept.items() if not tensor.any()]
    if empty:
        raise MaskError(
            "every weight of the tensor is zero, so it passes nothing on",
            where=empty[0],
            hint="if these are initial values, give a mask file that does not name them",
        )
    return Mask(kept, MaskProvenance(criterion, scope, "weight", tuple(layers), "baked-zeros"))


def find_zero_parameters(model: nn.Module) -> tuple[str, ...]:
    """Return the parameters of at most one axis that are 0 everywhere, which `mask_from_zeros` leaves out."""
    small = {name: p.detach() for name, p in plain_parameters(model).items() if p.dim() < 2 and p.numel()}
    return tuple(name for name, values in small.items() if not bool((values != 0).any()))


def count_rounded_zeros(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any] | None:
    """Estimate how many zeros of 16-bit weights are weights that were rounded to 0 when they were converted.

    The smallest positive number s of float16 is 6e-8. Weights in [-s/2, s/2] become 0, and those in s/2 to (k + 1/2) s
    become 1 to k times s. If the density of weights is about constant there, n nonzero weights up to k s let n / 2k
    rounded ones be expected. The largest of these estimates for k = 1, 2, 4, 8 is returned.

    Returns:
        `dtype`, `below` (s / 2), `zeros` and `expected` (of them rounded); None if no tensor with zeros has such a
        type.
    """
    widths = (1, 2, 4, 8)
    zeros, near, dtype, smallest = 0, dict.fromkeys(widths, 0), None, 0.0
    for tensor in tensors.values():
        if not tensor.is_floating_point():
            continue
        info = torch.finfo(tensor.dtype)
        step = info.smallest_normal * info.eps
        count = int((tensor == 0).sum())
        if step > 1e-20 and count:  # weights of networks are larger than the steps of the other types
            dtype, smallest = str(tensor.dtype).removeprefix("torch."), max(smallest, step)
            zeros += count
            for k in widths:
                near[k] += int(((tensor != 0) & (tensor.abs() <= k * step)).sum())
    if dtype is None:
        return None
    expected = max(count / (2 * k) for k, count in near.items())
    return {"dtype": dtype, "below": smallest / 2, "zeros": zeros, "expected": expected}


def detect_format(state: Mapping[str, torch.Tensor], parameters: Collection[str] | None = None) -> DetectedFormat:
    """Detect from its tensors alone how a state dict is pruned.

    A model counts as pruned if a thousandth of its weights are zero, or a hundredth of those of one tensor.

    Args:
        state: weights and buffers by name.
        parameters: names of the parameters, if known; otherwise every float tensor with two axes counts as one.

    Example:
        >>> import torch
        >>> from torch.nn.utils import prune
        >>> _ = torch.manual_seed(0)
        >>> layer = torch.nn.Linear(8, 4)
        >>> layer.weight.data = (torch.arange(32.0) ** 2 % 31).reshape(4, 8)
        >>> _ = prune.l1_unstructured(layer, "weight", amount=0.75)
        >>> found = detect_format(layer.state_dict())
        >>> found.format, found.granularity, found.sparsity
        ('torch-prune', 'weight', 0.75)
    """
    detected = "torch-prune" if is_torch_prune(state) else "baked-zeros"
    plain = from_torch_prune(state)[0] if detected == "torch-prune" else dict(state)
    named = plain if parameters is None else {name: t for name, t in plain.items() if name in parameters}
    weights = {name: t for name, t in named.items() if t.is_floating_point() and t.dim() >= 2}
    zeros = {name: float((t == 0).float().mean()) for name, t in weights.items() if t.numel()}
    total = sum(t.numel() for t in weights.values())
    sparsity = sum(int((t == 0).sum()) for t in weights.values()) / total if total else 0.0
    if detected == "baked-zeros" and sparsity < 1e-3 and all(fraction < 1e-2 for fraction in zeros.values()):
        return DetectedFormat("dense", None, sparsity, zeros)
    sparse = {name: weights[name] != 0 for name, fraction in zeros.items() if fraction > 0}
    granularity = "weight"
    if all(_has_whole_rows(kept) for kept in sparse.values()):
        granularity = "filter"
    elif (pattern := find_pattern(sparse)) is not None:
        granularity = f"{pattern[0]}:{pattern[1]}"
    return DetectedFormat(detected, granularity, sparsity, zeros)


def find_pattern(kept: Mapping[str, torch.Tensor]) -> tuple[int, int] | None:
    """Find the pattern n:m, m <= 16, such that every group of every sparse weight keeps exactly n; None if none exists.

    All such patterns have the same n / m, and the one with the smallest m implies the others (1:2 implies 2:4 and 4:8),
    so it is returned. Groups with fewer than n kept weights do not count: otherwise nearly every sparse weight would
    match 15:16.
    """
    sparse = [tensor for tensor in kept.values() if tensor.dim() > 1 and not tensor.all()]
    total = sum(tensor.numel() for tensor in sparse)
    count = sum(int(tensor.sum()) for tensor in sparse)
    for m in range(2, MAX_GROUP_SIZE + 1):
        if not total or count * m % total or not 0 < count * m // total < m:
            continue
        n = count * m // total
        if all(t.shape[1] % m == 0 and bool((t.movedim(1, -1).reshape(-1, m).sum(1) == n).all()) for t in sparse):
            return n, m
    return None


def _has_whole_rows(kept: torch.Tensor) -> bool:
    """Whether each row is either kept or pruned as a whole."""
    rows = kept.reshape(len(kept), -1)
    return bool((rows.all(1) | ~rows.any(1)).all())


def export_dense(model: nn.Module, mask: Mask | None, path: PathLike, *, prefix: str = "") -> None:
    """Write the weights as plain safetensors, masked ones +0.0, which any PyTorch code can load.

    Write the mask with `Mask.save`: training without it makes the zeros nonzero.

    Args:
        model: the network; not modified.
        mask: applied to a copy of the weights, or None.
        path: the safetensors file to write.
        prefix: what the names begin with (`model.` for a Lightning module with the attribute `model`).

    Raises:
        MaskError: the mask does not fit the model.

    Example:
        >>> from safetensors.torch import load_file
        >>> from torch import nn
        >>> from expunge.sparsity import Rule, make_mask
        >>> model = nn.Sequential(nn.Linear(8, 4))
        >>> mask, _ = make_mask(model, Rule(layers=("linear",), sparsity=0.75))
        >>> export_dense(model, mask, "weights.safetensors")
        >>> int((load_file("weights.safetensors")["0.weight"] == 0).sum())
        24
    """
    copy = clone_model(model)
    if mask is not None:
        mask.apply_(copy)
    write_weights(path, {f"{prefix}{name}": tensor for name, tensor in plain_state(copy).items()})


def write_weights(path: PathLike, state: Mapping[str, torch.Tensor]) -> None:
    """Write tensors as exported weights (docs/formats/weights.md)."""
    write_tensors(check_format(path, "safetensors"), state, {"kind": KIND, "schema_version": VERSION})


def count_pruned_channels(model: nn.Module, mask: Mask, input_shape: Sequence[int]) -> int:
    """Count the coupled channels that a mask prunes as a whole: those that `shrink` can remove."""
    return int((~find_kept_units(find_channels(model, input_shape), dict(mask.kept))).sum())


def find_layer_types(model: nn.Module) -> tuple[str, ...]:
    """Return the types of prunable layers that a model has."""
    return tuple(name for name, types in LAYER_TYPES.items() if any(isinstance(m, types) for m in model.modules()))
