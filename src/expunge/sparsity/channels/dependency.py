"""Coupled channels of adapted models that `torch.fx` cannot trace: MLP channels and attention heads, by Torch-Pruning.

Torch-Pruning follows autograd's graph. Of its groups, those that couple linear layers only are used: the hidden
channels of an MLP, and the queries, keys, values and the output projection of an attention, of which whole heads are
units. Channels that reach a LayerNorm, an embedding or the output are in no unit. Before the units are returned, half
of them are removed from a copy, whose logits must be those of the masked network.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from expunge.core.errors import MaskError
from expunge.core.hashing import plain_name
from expunge.core.probe import make_probe
from expunge.core.seeds import torch_generator
from expunge.core.trained import clone_model

Axis = tuple[str, int]
#: Attributes in which a module of attention keeps its number of heads.
_HEADS = ("num_attention_heads", "num_heads", "n_heads", "n_head")
_TOLERANCE = 1e-4
_NO_UNIT = -1


def find_linear_units(
    model: nn.Module, input_shape: Sequence[int]
) -> tuple[dict[Axis, NDArray[np.int64]], list[tuple[str, ...]]]:
    """Find the units of an adapted model.

    Args:
        model: the network, on the CPU and in evaluation mode; not modified.
        input_shape: shape of one record.

    Returns:
        (parameter name, dimension) to the unit of every index along it, -1 where there is none; and, for each unit, the
        names of the weights that have a row in it.

    Raises:
        MaskError: Torch-Pruning is not installed or cannot follow the network, there is no such group, or removing
            units gives other logits.
    """
    blocks: dict[object, list[dict[Axis, NDArray[np.int64]]]] = {}
    for root, size, group in _read_groups(clone_model(model).requires_grad_(True), input_shape):
        heads = _count_heads(model, root, size)
        key: object = (root.rpartition(".")[0], heads) if heads else root
        width = size // heads if heads else 1
        blocks.setdefault(key, []).append({axis: index // width for axis, index in group.items()})
    axes: dict[Axis, NDArray[np.int64]] = {}
    producers: list[tuple[str, ...]] = []
    for groups in blocks.values():
        merged = {axis: units for group in groups for axis, units in group.items()}
        count = max(int(units.max()) for units in merged.values()) + 1
        if any(axis in axes for axis in merged) or any(len(np.unique(units)) != count for units in merged.values()):
            continue
        axes |= {axis: units + len(producers) for axis, units in merged.items()}
        rows = tuple(sorted(name for name, dim in merged if dim == 0 and name.endswith(".weight")))
        producers += [rows] * count
    if not producers:
        raise MaskError("Torch-Pruning couples no linear layers with each other alone", where=type(model).__name__)
    _check_removal(model, input_shape, axes, len(producers))
    return axes, producers


def _read_groups(
    model: nn.Module, input_shape: Sequence[int]
) -> Iterator[tuple[str, int, dict[Axis, NDArray[np.int64]]]]:
    """Name and width of the first layer of each group of linear layers, and the root index along each of its axes."""
    try:
        import torch_pruning
    except ImportError as error:
        raise MaskError(
            "Torch-Pruning, which could follow it, is not installed",
            where=type(model).__name__,
            hint="pip install 'expunge[torch-pruning]'",
        ) from error
    x = make_probe(model, input_shape, 2, torch_generator(0, "torch-pruning"), normal=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=x)
            groups = list(graph.get_all_groups(root_module_types=[nn.Linear]))
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        raise MaskError(
            f"Torch-Pruning cannot follow it either ({type(error).__name__}: {first[:160]})", where=type(model).__name__
        ) from error
    names = {module: plain_name(path) for path, module in model.named_modules()}
    for group in groups:
        axes = _read_axes(graph, group, names)
        root = group[0].dep.target.module
        if axes is not None and any(dim == 1 for _, dim in axes):  # without a reader, it is the output
            yield names[root], root.out_features, axes


def _read_axes(graph: Any, group: Any, names: Mapping[nn.Module, str]) -> dict[Axis, NDArray[np.int64]] | None:
    """The root index of every index along the axes of a group; None if it has other tensors than linear layers."""
    axes: dict[Axis, NDArray[np.int64]] = {}
    for item in group:
        layer = item.dep.target.module
        if not isinstance(layer, nn.Linear):
            if isinstance(layer, nn.Parameter) or any(True for _ in getattr(layer, "parameters", tuple)()):
                return None
            continue
        dim = 0 if graph.is_out_channel_pruning_fn(item.dep.handler) else 1
        index = np.full(layer.weight.shape[dim], _NO_UNIT, dtype=np.int64)
        index[list(item.idxs)] = list(item.root_idxs)
        if (index < 0).any():
            return None
        axes[f"{names[layer]}.weight", dim] = index
        if dim == 0 and layer.bias is not None:
            axes[f"{names[layer]}.bias", 0] = index
    return axes


def _count_heads(model: nn.Module, layer: str, size: int) -> int:
    """The number of heads of the attention that a layer is in, with `size` rows; 0 if it is in none."""
    path = layer.rpartition(".")[0]
    parent = dict(model.named_modules()).get(path)
    found = next((getattr(parent, name) for name in _HEADS if isinstance(getattr(parent, name, None), int)), 0)
    return found if found and size % found == 0 else 0


def _check_removal(
    model: nn.Module, input_shape: Sequence[int], axes: Mapping[Axis, NDArray[np.int64]], count: int
) -> None:
    """Raise MaskError unless a copy without every second unit has the logits of a copy in which they are zero.

    Weights and biases of the copies are drawn: with small weights an attention is nearly uniform, and hides faults.
    """
    removed = np.arange(count) % 2 == 1
    drawn = clone_model(model).eval()
    generator = torch_generator(0, "physical removal", "weights")
    with torch.no_grad():
        for name, parameter in drawn.named_parameters():
            if parameter.dim() > 1 or (plain_name(name), 0) in axes:
                values = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(2 * values * (parameter.shape[0] / parameter.numel()) ** 0.5)
    masked, small = clone_model(drawn), clone_model(drawn)
    for (name, dim), units in axes.items():
        keeps = torch.from_numpy(~removed[units])
        path, _, part = name.rpartition(".")
        for network, cut in ((masked, False), (small, True)):
            layer: Any = network.get_submodule(path)
            old = getattr(layer, part).detach()
            if cut:
                new = old.index_select(dim, keeps.nonzero().flatten())
            else:
                shape = [-1 if axis == dim else 1 for axis in range(old.dim())]
                new = torch.where(keeps.view(shape), old, 0.0) if dim == 0 else old
            setattr(layer, part, nn.Parameter(new))
    x = make_probe(model, input_shape, 4, torch_generator(0, "physical removal"))
    try:
        with torch.no_grad():
            expected, got = masked(x), small(x)
    except RuntimeError as error:
        what = f"without half of its MLP channels and heads it cannot be run ({str(error)[:160]})"
        raise MaskError(what, where=type(model).__name__) from error
    difference = float((expected - got).abs().max())
    if not difference <= _TOLERANCE * max(1.0, float(expected.abs().max())):
        what = f"without half of its MLP channels and heads its logits differ by {difference:.3g} from the masked ones"
        raise MaskError(what, where=type(model).__name__)
