"""Smaller networks as files: what was cut is written, and the masked network comes back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from expunge.core.errors import ExpungeError, FileError, MaskError, TrustError
from expunge.core.files import PathLike, read_tensors, write_tensors
from expunge.core.mask import Mask, MaskProvenance
from expunge.core.seeds import torch_generator
from expunge.core.trained import Trained, plain_state
from expunge.core.trust import Trust, trusting
from expunge.models import Architecture
from expunge.sparsity.channels.groups import Axis, Channels, expand, find_channels, unit_alive
from expunge.training.checkpoint import load_state

from .shrink import TOLERANCE, Small, compare, cut, kept_indices, zero_widths

KIND, VERSION = "expunge.small", 1


def save_small(small: Small, trained: Trained, path: PathLike) -> None:
    """Write a smaller network as safetensors: its tensors, the indices that were kept, its architecture, its mask.

    The history of the removal is saved, not a pickled module: `load_small` builds the network and cuts it again. Of the
    mask its provenance and the names of its tensors; its bits where they say more than which channels went.
    """
    tensors = {f"state/{name}": tensor for name, tensor in plain_state(small.model).items()}
    tensors |= {f"kept/{name}": index for name, index in small.kept.items()}
    blueprint = Architecture.from_json(trained.provenance.architecture)
    channels = find_channels(blueprint.build(0), blueprint.input_shape)
    alive = unit_alive(channels, dict(small.mask.alive))
    coupled = expand(channels, alive, np.ones(channels.units, dtype=bool))
    for name, bits in small.mask.alive.items():
        if name not in coupled or not torch.equal(coupled[name], bits):
            tensors[f"mask/{name}"] = torch.from_numpy(np.packbits(bits.reshape(-1).numpy()))
    told = {
        "provenance": small.mask.provenance.to_json(),
        "tensors": sorted(small.mask.alive),
        "hash": small.mask.hash(),
    }
    body = {"kind": KIND, "schema_version": VERSION, "architecture": blueprint.to_json(), "mask": told}
    write_tensors(path, tensors, body)


def load_small(path: PathLike, *, trust: Sequence[str] | Trust = ()) -> nn.Module:
    """Read a smaller network that `save_small` wrote, in evaluation mode.

    Args:
        path: the file.
        trust: top-level packages that it may name for a custom architecture (`package.module:factory`); see
            `load_trained`. `read_arrived` calls no other factory than the one that it is given.

    Raises:
        TrustError: the file names code that nobody agreed to run; nothing was imported.
        FileError: not such a file, or damaged.
    """
    tensors, metadata = read_tensors(path)
    with trusting(trust):
        return _rebuilt(tensors, _as_cut(tensors, metadata, path), path)


@dataclasses.dataclass(frozen=True, eq=False)
class _Cutting:
    """What a file of `save_small` was cut from: architecture, its channels, indices kept, units alive."""

    blueprint: Architecture
    channels: Channels
    kept: dict[str, torch.Tensor]
    alive: NDArray[np.bool_]


def _rebuilt(tensors: Mapping[str, torch.Tensor], cutting: _Cutting, path: PathLike) -> nn.Module:
    """The smaller network: cut anew, then filled with the tensors of the file. Uses up the graph of the channels."""
    channels = cutting.channels
    small = cut(channels.graph, cutting.kept, zero_widths(channels, cutting.alive))
    own = plain_state(small)
    state = {name.removeprefix("state/"): t for name, t in tensors.items() if name.startswith("state/")}
    wrong = sorted(n for n in {*own, *state} if n not in own or n not in state or own[n].shape != state[n].shape)
    if wrong:
        raise FileError("the tensors do not fit the architecture and the kept indices", where=f"{path}: {wrong[0]}")
    with torch.no_grad():
        for name, tensor in state.items():
            own[name].copy_(tensor)
    return small


def _as_cut(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any], path: PathLike) -> _Cutting:
    """What a file of `save_small` was cut from, or FileError where it does not say that or contradicts itself."""
    if metadata.get("kind") != KIND or metadata.get("schema_version") != VERSION:
        raise FileError("is not a physically smaller network that this release reads", where=path)
    body = metadata.get("architecture")
    if not isinstance(body, Mapping):
        raise FileError("does not say which architecture it was cut from", where=f"{path}: architecture", hint=_AGAIN)
    try:
        blueprint = Architecture.from_json(body)
        channels = find_channels(blueprint.build(0), blueprint.input_shape)
    except TrustError:
        raise
    except ExpungeError as error:
        raise FileError(
            f"the architecture that it was cut from cannot be built here: {error.what}", where=path, hint=error.hint
        ) from error
    kept = {name.removeprefix("kept/"): index for name, index in tensors.items() if name.startswith("kept/")}
    alive = np.ones(channels.units, dtype=bool)
    for key, index in kept.items():
        name, _, dim = key.rpartition(":")
        axis: Axis = (name, int(dim) if dim.isdecimal() and dim.isascii() else -1)
        if axis not in channels.axes:
            raise FileError("names a tensor that its architecture does not have", where=f"{path}: kept/{key}")
        units = channels.axes[axis]
        _check_indices(index, len(units), f"{path}: kept/{key}")
        gone = units[np.setdiff1d(np.arange(len(units)), index.numpy())]
        alive[gone[gone >= 0]] = False
    whole = kept_indices(channels, alive)
    wrong = sorted(
        key for key in {*whole, *kept} if key not in kept or not torch.equal(whole.get(key, _NONE), kept[key])
    )
    if wrong:
        raise FileError(
            "the kept indices contradict each other: coupled channels stay or go together",
            where=f"{path}: kept/{wrong[0]}",
            hint=_AGAIN,
        )
    return _Cutting(blueprint, channels, kept, alive)


_NONE = torch.empty(0, dtype=torch.int64)
_AGAIN = "the file is damaged; copy it again, or write it again with save_small"


def _check_indices(index: torch.Tensor, size: int, where: str) -> None:
    """Raise FileError unless these are ascending int64 indices along an axis of `size`."""
    if index.dtype != torch.int64 or index.dim() != 1:
        found = f"{index.dtype}".removeprefix("torch.")
        what = f"kept indices are one row of int64 numbers, not {found} of shape {tuple(index.shape)}"
    elif len(index) and (int(index.min()) < 0 or int(index.max()) >= size):
        what = f"kept indices lie in 0 to {size - 1}, not in {int(index.min())} to {int(index.max())}"
    elif bool((index[1:] <= index[:-1]).any()):
        what = "kept indices ascend, and these do not"
    else:
        return
    raise FileError(what, where=where, hint=_AGAIN)


def masked_from_small(path: PathLike) -> tuple[Architecture, dict[str, torch.Tensor], Mask | dict[str, torch.Tensor]]:
    """The masked network that a smaller one was cut from: its architecture, its tensors, and its mask.

    Removed weights, biases, scales and shifts come back as +0.0, so the outputs are those of the smaller network, which
    is checked. What they were before the cut is in no file. The running variance of a removed channel, which nothing
    reads, is 1.

    Returns:
        Architecture, tensors, and the mask; for a file of an early release, which does not tell of its mask, what of
        the coupled channels is alive, by tensor name.

    Raises:
        FileError: not such a file, or damaged.
        MaskError: the outputs differ.
    """
    tensors, metadata = read_tensors(path)
    cutting = _as_cut(tensors, metadata, path)
    blueprint, channels, kept = cutting.blueprint, cutting.channels, cutting.kept
    coupled = expand(channels, cutting.alive, np.ones(channels.units, dtype=bool))
    small = _rebuilt(tensors, cutting, path)
    model = blueprint.build(0)
    whole: dict[str, torch.Tensor] = {}
    for name, target in plain_state(model).items():
        held = tensors[f"state/{name}"]
        if held.shape == target.shape:
            whole[name] = held.clone()
            continue
        whole[name] = torch.full_like(target, 1.0 if name.endswith("running_var") else 0.0)
        places = [kept.get(f"{name}:{dim}", torch.arange(size)) for dim, size in enumerate(target.shape)]
        whole[name][torch.meshgrid(*places, indexing="ij")] = held.to(target.dtype)
    load_state(model, whole)
    checks = [torch.randn(32, *blueprint.input_shape, generator=torch_generator(0, "physical removal"))]
    difference, scale = compare(model.eval(), small, checks)
    if not difference <= TOLERANCE * max(1.0, scale):
        raise MaskError(f"the masked network differs from the smaller one by {difference:.3g}", where=path)
    told = metadata.get("mask")
    return blueprint, whole, coupled if told is None else _told_mask(told, tensors, coupled, whole, path)


def _told_mask(
    told: Any,
    tensors: Mapping[str, torch.Tensor],
    coupled: Mapping[str, torch.Tensor],
    whole: Mapping[str, torch.Tensor],
    path: PathLike,
) -> Mask:
    """The mask that the file tells of, with its provenance."""
    try:
        alive = {}
        for name in told["tensors"]:
            packed = tensors.get(f"mask/{name}")
            if packed is None:
                alive[name] = coupled[name]
                continue
            shape = whole[name].shape
            bits = np.unpackbits(packed.numpy(), count=shape.numel()).astype(bool)
            alive[name] = torch.from_numpy(bits).reshape(shape)
        mask = Mask(alive, MaskProvenance.from_json(told["provenance"]))
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise FileError(f"its mask cannot be read ({error})", where=f"{path}: mask", hint=_AGAIN) from error
    if mask.hash() != told.get("hash"):
        raise FileError("the mask does not have the hash that the file records", where=f"{path}: mask", hint=_AGAIN)
    return mask
