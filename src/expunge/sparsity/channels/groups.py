"""Coupled channels: groups of rows, columns, scales and shifts of a network that must be pruned together.

The network is traced with `torch.fx`, and every index along a channel axis gets a slot (`propagation.Slots`).
Convolutions and linear layers create new slots for their outputs. BatchNorm, ReLU and pooling pass slots on. An
addition merges the slots of its two operands element by element. Zero padding of channels creates slots for the zeros.
Each class of merged slots is one unit of structured pruning: it includes residual partners, BatchNorm scale and shift,
and option-A shortcuts, where a channel of one stage meets a channel of the next stage at an offset.

The channels of an unsupported operation are pinned: they are never pruned. Torch-Pruning's dependency graph couples
whole layers by index functions; slots couple single channels, which option-A padding needs.
"""

from __future__ import annotations

import copy
import dataclasses
import operator
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn

from expunge.core.errors import MaskError, with_article
from expunge.core.hashing import plain_name
from expunge.core.probe import make_probe
from expunge.core.show import repr_fields
from expunge.core.trained import clone_model
from expunge.models.call import find_call
from expunge.models.normalise import Normalise

from .dependency import find_linear_units
from .layers import prunable_weights
from .propagation import Slots, propagate
from .structure import structure_key

Axis = tuple[str, int]
NO_UNIT = -1
#: How many traces are kept.
TRACES = 8


@dataclasses.dataclass(frozen=True, eq=False)
class Channels:
    """The coupled channels of one network. A unit is a group of coupled channels; units are numbered from 0.

    Attributes:
        axes: (parameter or buffer name, dimension) to the unit of every index along it; `NO_UNIT` (-1) where there is
            none.
        units: number of units.
        producers: for each unit, the names of the weights that have a row in it.
        padding: graph node of a channel padding to the units of its left and right zeros.
        graph: the traced network with plain layer names (a copy that shares no parameter with the original); of an
            adapted model that cannot be traced, a copy of the model.
    """

    axes: dict[Axis, NDArray[np.int64]]
    units: int
    producers: tuple[tuple[str, ...], ...]
    padding: dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]
    graph: nn.Module

    __repr__ = repr_fields

    def output_axes(self) -> dict[str, NDArray[np.int64]]:
        """Units along the first axis of each parameter: rows of weights, biases, BatchNorm scales and shifts."""
        names = dict(self.graph.named_parameters())
        return {name: axis for (name, dim), axis in self.axes.items() if dim == 0 and name in names}

    def pools(self, layers: Sequence[str]) -> dict[str, NDArray[np.int64]]:
        """Prunable units of the given layer types, grouped by equal producers; the group's name joins them by `+`.

        Raises:
            MaskError: no unit can be pruned.
        """
        allowed = set(prunable_weights(self.graph, layers))
        pools: dict[str, list[int]] = {}
        for unit, names in enumerate(self.producers):
            if names and set(names) <= allowed:
                pools.setdefault("+".join(names), []).append(unit)
        if not pools:
            raise MaskError(
                f"no channel of {with_article(' or '.join(layers))} layer can be removed: all of them reach the "
                "output or an unsupported operation",
                where="granularity filter",
                hint="choose layers=[conv, linear], or prune single weights",
            )
        return {name: np.asarray(found) for name, found in pools.items()}


#: The last traces, by structure and shape of a record: networks that differ in their weights share one.
_traced: OrderedDict[Hashable, tuple[fx.Graph, Channels]] = OrderedDict()


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(module, Normalise) or super().is_leaf_module(module, module_qualified_name)


def find_channels(model: nn.Module, input_shape: Sequence[int]) -> Channels:
    """Trace a copy of the network with `torch.fx` and find its coupled channels; equal networks are traced once.

    Args:
        model: the network; not modified.
        input_shape: shape of one record, `C x ...`.

    Raises:
        MaskError: the network cannot be traced (for example, because its forward branches on tensor values).

    Example:
        The four output channels of the convolution are coupled with BatchNorm and with columns of the linear layer.
        The outputs of the linear layer are the network's outputs, so they are pinned and form no unit.

        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
        >>> channels = find_channels(model, (1, 8, 8))
        >>> channels.units
        4
        >>> sorted(channels.output_axes())
        ['0.bias', '0.weight', '1.bias', '1.weight', '4.bias', '4.weight']
        >>> channels.axes["4.weight", 1][:40:36].tolist()  # 36 columns read each channel
        [0, 1]
    """
    copied = clone_model(model).cpu().eval()
    structure = structure_key(copied)
    key = None if structure is None else (structure, tuple(input_shape))
    if key in _traced:
        _traced.move_to_end(key)
        traced, channels = _traced[key]
        return dataclasses.replace(channels, graph=_rename_layers(copied, copy.deepcopy(traced)))
    try:
        traced = _Tracer().trace(copied)
        kept = copy.deepcopy(traced)
        graph = _rename_layers(copied, traced)
        shapes = _record_shapes(graph, make_probe(copied, input_shape, 2))
    except Exception as error:
        more = ""
        if find_call(copied) is not None:
            try:
                return _follow_linear_layers(copied, input_shape)
            except MaskError as other:
                more = f"; {other.what}"
        text = str(error).partition("\n")[0][:300] if more else error
        raise MaskError(
            "the network cannot be traced, so its coupled channels cannot be found "
            f"({type(error).__name__}: {text}{more})",
            where=type(model).__name__,
            hint="prune single weights (granularity weight), or write its forward without branches on values",
        ) from error
    found = _couple(graph, shapes)
    if key is not None:
        _traced[key] = kept, dataclasses.replace(found, graph=fx.GraphModule({}, fx.Graph()))  # without the weights
        if len(_traced) > TRACES:
            _traced.popitem(last=False)
    return found


def _follow_linear_layers(model: nn.Module, input_shape: Sequence[int]) -> Channels:
    """The MLP channels and attention heads of an adapted model."""
    axes, producers = find_linear_units(model, input_shape)
    return Channels(
        {axis: _read_only(units) for axis, units in axes.items()}, len(producers), tuple(producers), {}, model
    )


def _couple(graph: fx.GraphModule, shapes: dict[fx.Node, tuple[int, ...] | None]) -> Channels:
    """Find the coupled channels of a traced network."""
    slots = Slots()
    axes: dict[Axis, list[NDArray[np.int64]]] = {}
    padding: dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}

    def record_axis(name: str, dim: int, vector: NDArray[np.int64]) -> None:
        axes.setdefault((plain_name(name), dim), []).append(vector)

    values: dict[fx.Node, NDArray[np.int64] | None] = {}
    for node in graph.graph.nodes:
        values[node] = propagate(node, values, shapes, dict(graph.named_modules()), slots, record_axis, padding)
    return _build_channels(graph, slots, axes, padding)


def _rename_layers(model: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    """Build the traced network with its layers named as in masks, without a leading `module.`."""
    layers: dict[str, Any] = {}
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            own, node.target = str(node.target), plain_name(str(node.target))
            layers[node.target] = operator.attrgetter(own)(model)
    return fx.GraphModule(layers, graph).eval()


def _record_shapes(graph: fx.GraphModule, probe: torch.Tensor) -> dict[fx.Node, tuple[int, ...] | None]:
    """Run the graph on a batch of two and return the shape of every node's output (None for other values)."""
    shapes: dict[fx.Node, tuple[int, ...] | None] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            shapes[n] = tuple(result.shape) if isinstance(result, torch.Tensor) else None
            return result

    with torch.no_grad():
        Recorder(graph).run(probe)
    return shapes


def _build_channels(
    graph: fx.GraphModule,
    slots: Slots,
    axes: dict[Axis, list[NDArray[np.int64]]],
    padding: dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]],
) -> Channels:
    for vectors in axes.values():  # a layer that is called twice has one set of slots
        for other in vectors[1:]:
            slots.merge(vectors[0], other)
    root: Callable[[NDArray[np.int64]], NDArray[np.int64]] = slots.find_all
    producers: dict[int, set[str]] = {}
    weights = {name for name, p in graph.named_parameters() if p.dim() > 1}
    for (name, dim), vectors in axes.items():
        if dim == 0 and name in weights:
            for slot in root(vectors[0]).tolist():
                producers.setdefault(slot, set()).add(name)
    order = {slot: unit for unit, slot in enumerate(sorted(s for s in producers if not slots.is_pinned(s)))}

    def units(vector: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.asarray([order.get(int(slot), NO_UNIT) for slot in root(vector)], dtype=np.int64)

    return Channels(
        axes={axis: _read_only(units(vectors[0])) for axis, vectors in axes.items()},
        units=len(order),
        producers=tuple(tuple(sorted(producers[slot])) for slot in order),
        padding={name: (units(left), units(right)) for name, (left, right) in padding.items()},
        graph=graph,
    )


def _read_only(vector: NDArray[np.int64]) -> NDArray[np.int64]:
    vector.setflags(write=False)  # the channels of equal networks share it
    return vector


def find_kept_units(channels: Channels, masks: dict[str, torch.Tensor]) -> NDArray[np.bool_]:
    """Return which units a mask keeps: a unit is pruned where all its rows, scales and shifts are fully masked.

    Args:
        channels: the coupled channels of the network.
        masks: bool tensors by parameter name, True where a weight is kept.
    """
    kept = np.zeros(channels.units, dtype=bool)
    for name, axis in channels.output_axes().items():
        in_unit = axis >= 0
        if name not in masks:
            kept[axis[in_unit]] = True
            continue
        rows = masks[name].reshape(len(axis), -1).any(dim=1).numpy()
        np.logical_or.at(kept, axis[in_unit], cast(NDArray[np.bool_], rows)[in_unit])
    return kept


def expand_units(channels: Channels, kept: NDArray[np.bool_], ranked: NDArray[np.bool_]) -> dict[str, torch.Tensor]:
    """Expand a decision per unit to bool tensors by parameter name, True where a weight is kept.

    Args:
        channels: the coupled channels of the network.
        kept: which units are kept.
        ranked: which units were ranked; parameters without a ranked unit are left out.
    """
    parameters = dict(channels.graph.named_parameters())
    masks = {}
    for name, axis in channels.output_axes().items():
        in_unit = axis >= 0
        if not (in_unit & ranked[np.maximum(axis, 0)]).any():
            continue
        rows = torch.from_numpy(~in_unit | kept[np.maximum(axis, 0)])
        shape = parameters[name].shape
        masks[name] = rows.reshape(-1, *[1] * (len(shape) - 1)).expand(shape).clone()
    return masks
