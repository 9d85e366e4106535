"""Files of physically smaller networks, and restoring the masked networks from which they were cut."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from expunge.core.errors import ExpungeError, FileError, MaskError, TrustError
from expunge.core.files import PathLike, read_tensors, write_tensors
from expunge.core.mask import Mask, MaskProvenance
from expunge.core.probe import make_probe
from expunge.core.reading.file_names import check_format
from expunge.core.seeds import torch_generator
from expunge.core.trained import Trained, plain_state
from expunge.core.trust import Trust, trusting
from expunge.models import Architecture
from expunge.sparsity.channels.groups import Axis, Channels, expand_units, find_channels, find_kept_units
from expunge.training.checkpoint import load_state

from .shrink import TOLERANCE, SmallModel, compare_outputs, cut_tensors, find_kept_indices, find_padding_widths

KIND, VERSION = "expunge.small", 2


def save_small_model(small: SmallModel, trained: Trained, path: PathLike) -> None:
    """Write a smaller network as safetensors: its tensors, the kept indices, its architecture and its mask.

    No module is pickled: `load_small_model` builds the architecture and cuts it by the kept indices. Of the mask, the
    provenance and the names of its tensors are written; its bits only where they differ from the removed channels.

    Args:
        small: the result of `shrink`.
        trained: the model that was shrunk; it gives the architecture.
        path: the safetensors file to write.

    Example:
        >>> import expunge
        >>> from expunge.sparsity import load_small_model, shrink
        >>> records = expunge.load_records("digits")
        >>> split = expunge.make_split(records, seed=0)
        >>> network = expunge.architecture("mlp", records, split, widths=(16,))
        >>> recipe = expunge.get_recipe("one-cycle", epochs=1, batch_size=256)
        >>> dense = expunge.train(records, split, network, recipe=recipe)
        >>> pruning = expunge.Pruning(0.5, layers=("linear",), granularity="filter", schedule="one-shot")
        >>> sparse = expunge.prune(dense, pruning, expunge.Context(records))
        >>> save_small_model(shrink(sparse.model, sparse.mask, records.input_shape), sparse, "small.safetensors")
        >>> sum(weight.numel() for weight in load_small_model("small.safetensors").parameters())
        610
    """
    tensors = {f"state/{name}": tensor for name, tensor in plain_state(small.model).items()}
    tensors |= {f"kept/{name}": index for name, index in small.kept.items()}
    blueprint = Architecture.from_json(trained.provenance.architecture)
    channels = find_channels(blueprint.build_blank(), blueprint.input_shape)
    kept_units = find_kept_units(channels, dict(small.mask.kept))
    coupled = expand_units(channels, kept_units, np.ones(channels.units, dtype=bool))
    for name, bits in small.mask.kept.items():
        if name not in coupled or not torch.equal(coupled[name], bits):
            tensors[f"mask/{name}"] = torch.from_numpy(np.packbits(bits.reshape(-1).numpy()))
    mask = {
        "provenance": small.mask.provenance.to_json(),
        "tensors": sorted(small.mask.kept),
        "hash": small.mask.hash(),
    }
    metadata = {"kind": KIND, "schema_version": VERSION, "architecture": blueprint.to_json(), "mask": mask}
    write_tensors(check_format(path, "safetensors"), tensors, metadata)


def load_small_model(path: PathLike, *, trust: Sequence[str] | Trust = ()) -> nn.Module:
    """Read a smaller network that `save_small_model` wrote, in evaluation mode.

    Args:
        path: the file.
        trust: top-level packages that it may name for a custom architecture (`package.module:factory`); see
            `load_trained`. `import_model` calls no other factory than the one that it is given.

    Raises:
        TrustError: the file names code that nobody agreed to run; nothing was imported.
        FileError: not such a file, or damaged.

    Example:
        >>> import torch
        >>> import expunge
        >>> from expunge.sparsity import save_small_model, shrink
        >>> records = expunge.load_records("digits")
        >>> split = expunge.make_split(records, seed=0)
        >>> network = expunge.architecture("mlp", records, split, widths=(16,))
        >>> recipe = expunge.get_recipe("one-cycle", epochs=1, batch_size=256)
        >>> dense = expunge.train(records, split, network, recipe=recipe)
        >>> pruning = expunge.Pruning(0.5, layers=("linear",), granularity="filter", schedule="one-shot")
        >>> sparse = expunge.prune(dense, pruning, expunge.Context(records))
        >>> save_small_model(shrink(sparse.model, sparse.mask, records.input_shape), sparse, "small.safetensors")
        >>> x = torch.rand(3, *records.input_shape)
        >>> torch.allclose(load_small_model("small.safetensors")(x), sparse.model.eval()(x), atol=1e-5)
        True
    """
    tensors, metadata = read_tensors(path)
    with trusting(trust):
        return _rebuild(tensors, _read_cut(tensors, metadata, path), path)


@dataclasses.dataclass(frozen=True, eq=False)
class _Cut:
    """How the network in a file was cut.

    Attributes:
        blueprint: the architecture from which it was cut.
        channels: the coupled channels of that architecture.
        kept: tensor name and dimension (`name:dim`) to the indices that were kept.
        kept_units: which units of `channels` were kept.
    """

    blueprint: Architecture
    channels: Channels
    kept: dict[str, torch.Tensor]
    kept_units: NDArray[np.bool_]


def _rebuild(tensors: Mapping[str, torch.Tensor], record: _Cut, path: PathLike) -> nn.Module:
    """Cut the architecture again and load the tensors of the file. This changes the graph of `record.channels`."""
    channels = record.channels
    small = cut_tensors(channels.graph, record.kept, find_padding_widths(channels, record.kept_units))
    own = plain_state(small)
    state = {name.removeprefix("state/"): t for name, t in tensors.items() if name.startswith("state/")}
    wrong = sorted(n for n in {*own, *state} if n not in own or n not in state or own[n].shape != state[n].shape)
    if wrong:
        raise FileError("the tensors do not fit the architecture and the kept indices", where=f"{path}: {wrong[0]}")
    with torch.no_grad():
        for name, tensor in state.items():
            own[name].copy_(tensor)
    return small


def _read_cut(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any], path: PathLike) -> _Cut:
    """Read how the network in a file was cut, or raise FileError if that is missing or contradictory."""
    if metadata.get("kind") != KIND or metadata.get("schema_version") != VERSION:
        raise FileError("is not a physically smaller network that this release reads", where=path)
    body = metadata.get("architecture")
    if not isinstance(body, Mapping):
        raise FileError(
            "does not record the architecture from which it was cut", where=f"{path}: architecture", hint=_DAMAGED
        )
    try:
        blueprint = Architecture.from_json(body)
        channels = find_channels(blueprint.build_blank(), blueprint.input_shape)
    except TrustError:
        raise
    except ExpungeError as error:
        raise FileError(
            f"the architecture from which it was cut cannot be built here: {error.what}", where=path, hint=error.hint
        ) from error
    kept = {name.removeprefix("kept/"): index for name, index in tensors.items() if name.startswith("kept/")}
    kept_units = np.ones(channels.units, dtype=bool)
    for key, index in kept.items():
        name, _, dim = key.rpartition(":")
        axis: Axis = (name, int(dim) if dim.isdecimal() and dim.isascii() and len(dim) < 10 else -1)
        if axis not in channels.axes:
            raise FileError("names a tensor that its architecture does not have", where=f"{path}: kept/{key}")
        units = channels.axes[axis]
        _check_indices(index, len(units), f"{path}: kept/{key}")
        removed = units[np.setdiff1d(np.arange(len(units)), index.numpy())]
        kept_units[removed[removed >= 0]] = False
    expected = find_kept_indices(channels, kept_units)
    wrong = sorted(
        key for key in {*expected, *kept} if key not in kept or not torch.equal(expected.get(key, _EMPTY), kept[key])
    )
    if wrong:
        raise FileError(
            "the kept indices contradict each other: coupled channels must be kept or removed together",
            where=f"{path}: kept/{wrong[0]}",
            hint=_DAMAGED,
        )
    return _Cut(blueprint, channels, kept, kept_units)


_EMPTY = torch.empty(0, dtype=torch.int64)
_DAMAGED = "the file is damaged; copy it again, or write it again with save_small_model"


def _check_indices(index: torch.Tensor, size: int, where: str) -> None:
    """Raise FileError unless these are ascending int64 indices along an axis of `size`."""
    if index.dtype != torch.int64 or index.dim() != 1:
        found = f"{index.dtype}".removeprefix("torch.")
        what = f"kept indices must be one row of int64 numbers, not {found} of shape {tuple(index.shape)}"
    elif len(index) and (int(index.min()) < 0 or int(index.max()) >= size):
        what = f"kept indices must lie in 0 to {size - 1}, not in {int(index.min())} to {int(index.max())}"
    elif bool((index[1:] <= index[:-1]).any()):
        what = "kept indices must ascend"
    else:
        return
    raise FileError(what, where=where, hint=_DAMAGED)


def restore_masked_model(
    path: PathLike,
) -> tuple[Architecture, dict[str, torch.Tensor], Mask | dict[str, torch.Tensor]]:
    """Restore the masked network from which a smaller one was cut: its architecture, its tensors and its mask.

    Removed weights, biases, scales and shifts are restored as +0.0, so the outputs are those of the smaller network,
    which is checked. Their values before the cut are in no file. The running variance of a removed channel, which has
    no effect, is set to 1.

    Returns:
        Architecture, tensors, and the mask. For a file of an early release, which does not record its mask: bool
        tensors by parameter name, True where a coupled channel was kept.

    Raises:
        FileError: not such a file, or damaged.
        MaskError: the outputs differ.
    """
    tensors, metadata = read_tensors(path)
    record = _read_cut(tensors, metadata, path)
    blueprint, channels, kept = record.blueprint, record.channels, record.kept
    coupled = expand_units(channels, record.kept_units, np.ones(channels.units, dtype=bool))
    small = _rebuild(tensors, record, path)
    model = blueprint.build_blank()
    whole: dict[str, torch.Tensor] = {}
    for name, target in plain_state(model).items():
        stored = tensors[f"state/{name}"]
        if stored.shape == target.shape:
            whole[name] = stored.clone()
            continue
        whole[name] = torch.full_like(target, 1.0 if name.endswith("running_var") else 0.0)
        places = [kept.get(f"{name}:{dim}", torch.arange(size)) for dim, size in enumerate(target.shape)]
        whole[name][torch.meshgrid(*places, indexing="ij")] = stored.to(target.dtype)
    load_state(model, whole)
    records = max(1, min(32, 2**24 // math.prod(blueprint.input_shape)))  # the shape is from a file
    checks = [make_probe(model, blueprint.input_shape, records, torch_generator(0, "physical removal"), normal=True)]
    difference, scale = compare_outputs(model.eval(), small, checks)
    if not difference <= TOLERANCE * max(1.0, scale):
        raise MaskError(f"the masked network differs from the smaller one by {difference:.3g}", where=path)
    recorded = metadata.get("mask")
    return blueprint, whole, coupled if recorded is None else _read_mask(recorded, tensors, coupled, whole, path)


def _read_mask(
    recorded: Any,
    tensors: Mapping[str, torch.Tensor],
    coupled: Mapping[str, torch.Tensor],
    whole: Mapping[str, torch.Tensor],
    path: PathLike,
) -> Mask:
    """Read the recorded mask with its provenance, and check its hash."""
    try:
        kept = {}
        for name in recorded["tensors"]:
            packed = tensors.get(f"mask/{name}")
            if packed is None:
                kept[name] = coupled[name]
                continue
            shape = whole[name].shape
            bits = np.unpackbits(packed.numpy(), count=shape.numel()).astype(bool)
            kept[name] = torch.from_numpy(bits).reshape(shape)
        mask = Mask(kept, MaskProvenance.from_json(recorded["provenance"]))
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise FileError(f"its mask cannot be read ({error})", where=f"{path}: mask", hint=_DAMAGED) from error
    if mask.hash() != recorded.get("hash"):
        raise FileError("the mask does not have the hash that the file records", where=f"{path}: mask", hint=_DAMAGED)
    return mask
