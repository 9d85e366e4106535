"""Coupled channels: which rows, columns, scales and shifts of a network live and die together.

Every axis of channels in the network's graph gets one slot a channel. Layers that make channels (convolutions, linear
layers) open new slots; layers that pass channels on (BatchNorm, ReLU, pooling) carry them; an addition joins the slots
of its two sides one by one; a zero-padding of channels opens slots of its own for the zeros. The classes of joined
slots are the units that structured pruning removes: residual partners, BatchNorm scale and shift included, option-A
shortcuts too, where a channel of one stage meets a channel of the next at an offset.

Whatever is not understood pins its channels: they are never pruned. Compare Torch-Pruning's dependency graph, which
couples whole layers by index functions; slots couple single channels, which padding needs.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn

from expunge.core.errors import MaskError
from expunge.core.hashing import plain_name
from expunge.core.trained import clone_model
from expunge.models.normalise import Normalise

from .layers import prunable
from .propagation import Slots, tracked

Axis = tuple[str, int]
FIXED = -1


@dataclasses.dataclass(frozen=True, eq=False)
class Channels:
    """The coupled channels of one network.

    Attributes:
        axes: (parameter or buffer name, dimension) to the unit of every index along it; `FIXED` (-1) where no unit is.
        units: how many units there are.
        producers: unit to the names of the weights whose rows make it.
        zeros: graph node of a channel padding to the units of its left and right zeros.
        graph: the traced network under plain names (a copy; parameters are shared with nothing).
    """

    axes: dict[Axis, NDArray[np.int64]]
    units: int
    producers: tuple[tuple[str, ...], ...]
    zeros: dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]
    graph: fx.GraphModule

    def outputs(self) -> dict[str, NDArray[np.int64]]:
        """Parameters along whose first axis units lie: rows of weights, biases, BatchNorm scales and shifts."""
        names = dict(self.graph.named_parameters())
        return {name: axis for (name, dim), axis in self.axes.items() if dim == 0 and name in names}

    def pools(self, layers: Sequence[str]) -> dict[str, NDArray[np.int64]]:
        """Units that `layers` lets be pruned, in pools of equal producers; a pool is named by them, joined by `+`.

        Raises:
            MaskError: no unit can be pruned.
        """
        allowed = set(prunable(self.graph, layers))
        pools: dict[str, list[int]] = {}
        for unit, names in enumerate(self.producers):
            if names and set(names) <= allowed:
                pools.setdefault("+".join(names), []).append(unit)
        if not pools:
            raise MaskError(
                f"no channel of a {' or '.join(layers)} layer can be removed: all reach the output, or an operation "
                "that is not understood",
                where="granularity filter",
                hint="choose layers=[conv, linear], or prune single weights",
            )
        return {name: np.asarray(found) for name, found in pools.items()}


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(module, Normalise) or super().is_leaf_module(module, module_qualified_name)


def find_channels(model: nn.Module, input_shape: Sequence[int]) -> Channels:
    """Trace a copy of the network with `torch.fx` and find its coupled channels.

    Args:
        model: the network; not modified.
        input_shape: shape of one record, `C x ...`.

    Raises:
        MaskError: the network cannot be traced (its forward branches on values of tensors, say).
    """
    twin = clone_model(model).cpu().eval()
    try:
        graph = _plainly_named(twin, _Tracer().trace(twin))
        shapes = _shapes(graph, input_shape)
    except Exception as error:
        raise MaskError(
            f"the network cannot be traced, so its coupled channels are not known ({type(error).__name__}: {error})",
            where=type(model).__name__,
            hint="prune single weights (granularity weight), or write its forward without branches on values",
        ) from error
    slots = Slots()
    axes: dict[Axis, list[NDArray[np.int64]]] = {}
    zeros: dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}

    def note(name: str, dim: int, vector: NDArray[np.int64]) -> None:
        axes.setdefault((plain_name(name), dim), []).append(vector)

    values: dict[fx.Node, NDArray[np.int64] | None] = {}
    for node in graph.graph.nodes:
        values[node] = tracked(node, values, shapes, dict(graph.named_modules()), slots, note, zeros)
    return _resolve(graph, slots, axes, zeros)


def _plainly_named(model: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    """The traced network with its layers under the names that masks have for them, without a leading `module.`."""
    held: dict[str, Any] = {}
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            own, node.target = str(node.target), plain_name(str(node.target))
            held[node.target] = operator.attrgetter(own)(model)
    return fx.GraphModule(held, graph).eval()


def _shapes(graph: fx.GraphModule, input_shape: Sequence[int]) -> dict[fx.Node, tuple[int, ...] | None]:
    """Shapes of all tensors of the graph for a batch of two."""
    shapes: dict[fx.Node, tuple[int, ...] | None] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            shapes[n] = tuple(result.shape) if isinstance(result, torch.Tensor) else None
            return result

    with torch.no_grad():
        Recorder(graph).run(torch.zeros(2, *input_shape))
    return shapes


def _resolve(
    graph: fx.GraphModule,
    slots: Slots,
    axes: dict[Axis, list[NDArray[np.int64]]],
    zeros: dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]],
) -> Channels:
    for vectors in axes.values():  # a layer called twice: its slots are one
        for other in vectors[1:]:
            slots.join(vectors[0], other)
    root: Callable[[NDArray[np.int64]], NDArray[np.int64]] = slots.roots
    makers: dict[int, set[str]] = {}
    weights = {name for name, p in graph.named_parameters() if p.dim() > 1}
    for (name, dim), vectors in axes.items():
        if dim == 0 and name in weights:
            for slot in root(vectors[0]).tolist():
                makers.setdefault(slot, set()).add(name)
    order = {slot: unit for unit, slot in enumerate(sorted(s for s in makers if not slots.pinned(s)))}

    def units(vector: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.asarray([order.get(int(slot), FIXED) for slot in root(vector)], dtype=np.int64)

    return Channels(
        axes={axis: units(vectors[0]) for axis, vectors in axes.items()},
        units=len(order),
        producers=tuple(tuple(sorted(makers[slot])) for slot in order),
        zeros={name: (units(left), units(right)) for name, (left, right) in zeros.items()},
        graph=graph,
    )


def unit_alive(channels: Channels, alive: dict[str, torch.Tensor]) -> NDArray[np.bool_]:
    """Which units a mask keeps: a unit is dead where every row, scale and shift of it is masked entirely."""
    kept = np.zeros(channels.units, dtype=bool)
    for name, axis in channels.outputs().items():
        here = axis >= 0
        if name not in alive:
            kept[axis[here]] = True
            continue
        rows = alive[name].reshape(len(axis), -1).any(dim=1).numpy()
        np.logical_or.at(kept, axis[here], cast(NDArray[np.bool_], rows)[here])
    return kept


def expand(channels: Channels, kept: NDArray[np.bool_], taking_part: NDArray[np.bool_]) -> dict[str, torch.Tensor]:
    """Bool tensors of every row, bias, scale and shift that belongs to a unit taking part."""
    parameters = dict(channels.graph.named_parameters())
    alive = {}
    for name, axis in channels.outputs().items():
        here = axis >= 0
        if not (here & taking_part[np.maximum(axis, 0)]).any():
            continue
        rows = torch.from_numpy(~here | kept[np.maximum(axis, 0)])
        shape = parameters[name].shape
        alive[name] = rows.reshape(-1, *[1] * (len(shape) - 1)).expand(shape).clone()
    return alive
