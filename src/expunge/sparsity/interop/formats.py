"""Models that arrive pruned, and how they leave: torch.nn.utils.prune state dicts, baked zeros, mask files, exports."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from expunge.core.errors import MaskError
from expunge.core.files import PathLike, write_tensors
from expunge.core.hashing import plain_name
from expunge.core.mask import Mask, MaskProvenance
from expunge.core.trained import clone_model, plain_state
from expunge.sparsity.channels.groups import find_channels, unit_alive
from expunge.sparsity.channels.layers import KINDS, prunable

KIND, VERSION = "expunge.weights", 1
State = dict[str, torch.Tensor]
ORIGINAL, MASKED = "_orig", "_mask"
WIDEST = 16  # the largest m of the patterns n:m that are looked for


@dataclasses.dataclass(frozen=True)
class Recognised:
    """What a state dict turned out to be.

    Attributes:
        form: `torch-prune` (`weight_orig` and `weight_mask`), `baked zeros` or `dense`.
        granularity: `weight`, `filter` or a pattern such as `2:4`; None where dense.
        sparsity: share of zeros among the weights of convolutions and linear layers, in [0, 1].
        layer_sparsity: the same by weight name.
    """

    form: str
    granularity: str | None
    sparsity: float
    layer_sparsity: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "layer_sparsity": dict(self.layer_sparsity)}


def is_torch_prune(state: Mapping[str, torch.Tensor]) -> bool:
    """Whether a state dict holds the tensors of `torch.nn.utils.prune` (`<weight>_orig` with `<weight>_mask`)."""
    return any(name.endswith(ORIGINAL) and _base(name) + MASKED in state for name in state)


def _base(name: str) -> str:
    return name.removesuffix(ORIGINAL)


def from_torch_prune(
    state: Mapping[str, torch.Tensor], *, layers: Sequence[str] = (), criterion: str = "unknown", scope: str = "global"
) -> tuple[State, Mask]:
    """Split the state dict of a model with `torch.nn.utils.prune` hooks into plain weights and a mask.

    Args:
        state: with `<weight>_orig` and `<weight>_mask` in the place of pruned weights.
        layers: kinds of layers that were pruned, as far as is known; un-pruning needs them.
        criterion: what ranked, as far as is known.
        scope: where weights competed, as far as is known.

    Returns:
        Weights under their plain names, masked ones +0.0, and the mask.

    Raises:
        MaskError: a half is missing, the shapes differ, or a mask holds other values than 0 and 1.
    """
    if not is_torch_prune(state):
        raise MaskError(
            "the tensors are not those of torch.nn.utils.prune (no <weight>_orig with its <weight>_mask)",
            hint="read baked zeros with mask_from_zeros, or a mask file with Mask.load",
        )
    plain: State = {}
    alive: State = {}
    for name, tensor in state.items():
        if name.endswith(MASKED):
            if name.removesuffix(MASKED) + ORIGINAL not in state:
                raise MaskError("the mask has no weight_orig beside it", where=name)
            continue
        if not (name.endswith(ORIGINAL) and _base(name) + MASKED in state):
            plain[plain_name(name)] = tensor.detach().clone()
            continue
        mask, target = state[_base(name) + MASKED], plain_name(_base(name))
        if mask.shape != tensor.shape:
            raise MaskError(f"the mask has shape {tuple(mask.shape)}, the weight {tuple(tensor.shape)}", where=name)
        if not bool(((mask == 0) | (mask == 1)).all()):
            raise MaskError("the mask holds values other than 0 and 1", where=_base(name) + MASKED)
        alive[target] = mask.detach().cpu().bool()
        plain[target] = tensor.detach().clone().masked_fill_(mask == 0, 0.0)
    provenance = MaskProvenance(criterion, scope, "weight", tuple(layers), "torch.nn.utils.prune")
    return plain, Mask(alive, provenance)


def to_torch_prune(state: Mapping[str, torch.Tensor], mask: Mask) -> State:
    """The state dict of the same model with `torch.nn.utils.prune` hooks: `_orig` and `_mask` for masked weights."""
    out: State = {}
    for name, tensor in state.items():
        if name in mask.alive:
            out[name + ORIGINAL] = tensor.detach().clone()
            out[name + MASKED] = mask.alive[name].to(tensor.dtype)
        else:
            out[name] = tensor.detach().clone()
    missing = [name for name in mask.alive if name not in state]
    if missing:
        raise MaskError("the mask names a weight that the model does not have", where=missing[0])
    return out


def mask_from_zeros(
    model: nn.Module, layers: Sequence[str] = ("conv",), *, criterion: str = "magnitude", scope: str = "global"
) -> Mask:
    """The mask of a model with baked zeros: a weight is dead where it is exactly 0.

    One SGD step without this mask would bring the zeros back to life.

    Args:
        model: not modified.
        layers: kinds of layers that were pruned.
        criterion: what ranked, as far as is known; un-pruning needs it.
        scope: where weights competed, as far as is known.

    Raises:
        MaskError: there is no zero, or a layer is zero throughout.
    """
    alive = {name: (weight.detach() != 0).cpu() for name, weight in prunable(model, layers).items()}
    if all(bool(tensor.all()) for tensor in alive.values()):
        raise MaskError("no weight is exactly zero: the model is dense", hint="prune it first, or give a mask file")
    empty = [name for name, tensor in alive.items() if not tensor.any()]
    if empty:
        raise MaskError("every weight of the layer is zero: nothing passes it", where=empty[0])
    return Mask(alive, MaskProvenance(criterion, scope, "weight", tuple(layers), "baked zeros"))


def recognise(state: Mapping[str, torch.Tensor]) -> Recognised:
    """Say how a state dict is pruned, from its tensors alone."""
    form = "torch-prune" if is_torch_prune(state) else "baked zeros"
    plain = from_torch_prune(state)[0] if form == "torch-prune" else dict(state)
    weights = {name: t for name, t in plain.items() if name.endswith("weight") and t.dim() >= 2}
    zeros = {name: float((t == 0).float().mean()) for name, t in weights.items()}
    total = sum(t.numel() for t in weights.values())
    sparsity = sum(int((t == 0).sum()) for t in weights.values()) / total if total else 0.0
    if form == "baked zeros" and sparsity < 1e-3:
        return Recognised("dense", None, sparsity, zeros)
    sparse = {name: weights[name] != 0 for name, share in zeros.items() if share > 0}
    granularity = "weight"
    if all(_whole_rows(alive) for alive in sparse.values()):
        granularity = "filter"
    elif (pattern := pattern_of(sparse)) is not None:
        granularity = f"{pattern[0]}:{pattern[1]}"
    return Recognised(form, granularity, sparsity, zeros)


def pattern_of(alive: Mapping[str, torch.Tensor]) -> tuple[int, int] | None:
    """The pattern n:m, m <= 16, of which every group of every sparse weight keeps exactly n; None where there is none.

    All patterns that hold have the same n / m, and the smallest m implies the others (1:2 is 2:4 and 4:8 too), so it is
    the answer. A pattern of which a group keeps fewer than n is none: of 15:16 nearly every sparse weight would be one.
    """
    sparse = [tensor for tensor in alive.values() if tensor.dim() > 1 and not tensor.all()]
    total = sum(tensor.numel() for tensor in sparse)
    kept = sum(int(tensor.sum()) for tensor in sparse)
    for m in range(2, WIDEST + 1):
        if not total or kept * m % total or not 0 < kept * m // total < m:
            continue
        n = kept * m // total
        if all(t.shape[1] % m == 0 and bool((t.movedim(1, -1).reshape(-1, m).sum(1) == n).all()) for t in sparse):
            return n, m
    return None


def _whole_rows(alive: torch.Tensor) -> bool:
    rows = alive.reshape(len(alive), -1)
    return bool((rows.all(1) | ~rows.any(1)).all())


def export_dense(model: nn.Module, mask: Mask | None, path: PathLike) -> None:
    """Write the weights as plain safetensors, masked ones +0.0: any PyTorch code can load them.

    The mask is written by `Mask.save`; without it the first training step elsewhere revives the zeros.
    """
    twin = clone_model(model)
    if mask is not None:
        mask.apply_(twin)
    write_weights(path, plain_state(twin))


def write_weights(path: PathLike, state: Mapping[str, torch.Tensor]) -> None:
    """Write tensors as exported weights (docs/formats/weights.md)."""
    write_tensors(path, state, {"kind": KIND, "schema_version": VERSION})


def dead_channels(model: nn.Module, mask: Mask, input_shape: Sequence[int]) -> int:
    """How many coupled channels a mask kills as a whole: what physical removal can take away."""
    return int((~unit_alive(find_channels(model, input_shape), dict(mask.alive))).sum())


def kinds_of(model: nn.Module) -> tuple[str, ...]:
    """The kinds of prunable layers that a model has."""
    return tuple(kind for kind, types in KINDS.items() if any(isinstance(m, types) for m in model.modules()))
