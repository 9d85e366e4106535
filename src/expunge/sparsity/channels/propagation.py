"""Channel slots, and how each operation of a traced network propagates them.

A slot stands for one index along a channel axis of one tensor. Two slots are merged when an operation couples their
channels, for example by adding two tensors.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn
from torch.nn import functional

Vector = NDArray[np.int64]
Values = Mapping[fx.Node, "Vector | None"]
Shapes = Mapping[fx.Node, "tuple[int, ...] | None"]
RecordAxis = Callable[[str, int, Vector], None]


class Slots:
    """Union-find over channel slots. Slots can be pinned: the channels of a pinned class are never pruned."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._pinned: list[bool] = []

    def add(self, count: int, *, pinned: bool = False) -> Vector:
        """Create `count` new slots and return them."""
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        self._pinned.extend([pinned] * count)
        return np.arange(first, first + count, dtype=np.int64)

    def find(self, slot: int) -> int:
        """Return the representative of a slot's class."""
        while self._parent[slot] != slot:
            self._parent[slot] = self._parent[self._parent[slot]]
            slot = self._parent[slot]
        return slot

    def find_all(self, vector: Vector) -> Vector:
        """Return the representatives of many slots."""
        return np.asarray([self.find(int(slot)) for slot in vector], dtype=np.int64)

    def merge(self, a: Vector, b: Vector) -> None:
        """Merge two vectors of slots element by element. A class is pinned if either part was."""
        for left, right in zip(a.tolist(), b.tolist(), strict=True):
            one, two = sorted((self.find(left), self.find(right)))
            self._parent[two] = one
            self._pinned[one] = self._pinned[one] or self._pinned[two]

    def pin(self, vector: Vector | None) -> None:
        """Pin slots, so that their channels are never pruned."""
        for slot in () if vector is None else vector.tolist():
            self._pinned[self.find(slot)] = True

    def is_pinned(self, root: int) -> bool:
        """Whether the class with this representative is pinned."""
        return self._pinned[root]


#: Modules that map a channel of zeros to a channel of zeros and do not mix channels.
_CHANNELWISE_MODULES = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.ELU, nn.Tanh, nn.Hardtanh, nn.Hardswish, nn.Identity),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d),
)
#: Functions and tensor methods with the same two properties.
_CHANNELWISE_CALLS: set[Any] = {
    *(torch.relu, torch.tanh, torch.max_pool1d, torch.max_pool2d, torch.avg_pool1d, torch.adaptive_avg_pool1d),
    *(functional.relu, functional.relu6, functional.leaky_relu, functional.gelu, functional.silu, functional.elu),
    *(functional.tanh, functional.hardswish, functional.dropout, functional.dropout2d, functional.max_pool1d),
    *(functional.max_pool2d, functional.avg_pool1d, functional.avg_pool2d, functional.adaptive_avg_pool1d),
    *(functional.adaptive_avg_pool2d, functional.adaptive_max_pool2d, functional.interpolate),
    *("relu", "relu_", "tanh", "contiguous", "float", "to", "clone"),
}
_ADDITIONS: set[Any] = {operator.add, operator.iadd, torch.add, operator.sub, torch.sub, "add", "add_", "sub"}
_REDUCTIONS: set[Any] = {torch.mean, torch.sum, torch.amax, "mean", "sum", "amax"}
_RESHAPES: set[Any] = {torch.flatten, torch.reshape, "flatten", "view", "reshape"}
_SIZES = ("size", "dim", "numel")


def propagate(
    node: fx.Node,
    values: Values,
    shapes: Shapes,
    modules: Mapping[str, nn.Module],
    slots: Slots,
    record_axis: RecordAxis,
    padding: dict[str, tuple[Vector, Vector]],
) -> Vector | None:
    """Return the slots along axis 1 of a node's output (None where it is not a tensor of at least two axes).

    If an operation is not supported, the slots of its inputs are pinned, and its output gets new pinned slots.

    Args:
        node: the node; all nodes that it reads must have been propagated before.
        values: slots of the nodes before it.
        shapes: output shapes of all nodes, for a batch of two.
        modules: submodules by name.
        slots: the union-find structure; slots are merged and pinned in place.
        record_axis: called with a parameter name, a dimension and the slots along that dimension.
        padding: filled with the slots of the zeros that channel padding adds, by node name.
    """
    shape = shapes.get(node)
    inputs = [v for v in map(values.get, node.all_input_nodes) if v is not None]
    first = inputs[0] if inputs else None
    if node.op == "output":
        for vector in inputs:
            slots.pin(vector)
        return None
    if shape is None or len(shape) < 2:
        if node.target not in (*_SIZES, getattr) or node.op == "call_module":
            for vector in inputs:
                slots.pin(vector)
        return None
    result: Vector | None = None
    if node.op == "call_module" and first is not None and len(inputs) == 1:
        module = modules[str(node.target)]
        result = _propagate_module(str(node.target), module, first, shape, slots, record_axis)
    elif node.op in ("call_function", "call_method") and inputs:
        result = _propagate_call(node, inputs, shape, values, shapes, slots, padding)
    if result is not None and len(result) == shape[1]:
        return result
    for vector in inputs:  # not supported: neither the input channels nor the output channels can be pruned
        slots.pin(vector)
    return slots.add(shape[1], pinned=True)


def _propagate_module(
    name: str, module: nn.Module, incoming: Vector, shape: tuple[int, ...], slots: Slots, record_axis: RecordAxis
) -> Vector | None:
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)) and "weight" not in module._parameters:
        return None  # a parametrisation computes it, so it cannot be cut
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        if module.groups == 1:
            record_axis(f"{name}.weight", 1, incoming)
            out = slots.add(module.out_channels)
        elif module.groups == module.in_channels == module.out_channels:
            out = incoming
        else:
            return None
    elif isinstance(module, nn.Linear):
        if len(shape) != 2:
            return None
        record_axis(f"{name}.weight", 1, incoming)
        out = slots.add(module.out_features)
    elif isinstance(module, nn.modules.batchnorm._BatchNorm):
        if not (module.affine and module.track_running_stats):
            return None
        for part in ("weight", "bias", "running_mean", "running_var"):
            record_axis(f"{name}.{part}", 0, incoming)
        return incoming
    elif isinstance(module, nn.Flatten):
        return _flatten(incoming, shape) if module.start_dim == 1 and module.end_dim == -1 else None
    else:
        return incoming if isinstance(module, _CHANNELWISE_MODULES) else None
    record_axis(f"{name}.weight", 0, out)
    if module.bias is not None:
        record_axis(f"{name}.bias", 0, out)
    return out


def _flatten(incoming: Vector, shape: tuple[int, ...]) -> Vector | None:
    """Propagate through `N x C x S` to `N x (C S)`: each channel is repeated S times."""
    repeats, rest = divmod(shape[1], len(incoming))
    return np.repeat(incoming, repeats) if len(shape) == 2 and rest == 0 else None


def _propagate_call(
    node: fx.Node,
    inputs: list[Vector],
    shape: tuple[int, ...],
    values: Values,
    shapes: Shapes,
    slots: Slots,
    padding: dict[str, tuple[Vector, Vector]],
) -> Vector | None:
    target, first = node.target, inputs[0]
    in_shape = shapes.get(node.all_input_nodes[0])
    if target in _CHANNELWISE_CALLS:
        return first if len(inputs) == 1 and in_shape is not None and len(in_shape) == len(shape) else None
    if target in _ADDITIONS:
        return _add(node, values, shapes, slots)
    if target in (operator.mul, operator.truediv, torch.mul, torch.div, "mul", "div"):
        return first if isinstance(_argument(node, 1, "other"), (int, float)) else None
    if target in _REDUCTIONS:
        return first if _keeps_channels(node, in_shape, shape) else None
    if target in _RESHAPES:
        whole = in_shape is not None and len(shape) == 2 and shape[1] == math.prod(in_shape[1:])
        return _flatten(first, shape) if whole else None
    if target is torch.cat:
        return _concatenate(node, values)
    if target is operator.getitem:
        return first if _indexes_only_space(node.args[1], in_shape) else None
    if target is functional.pad:
        return _pad(node, first, in_shape, slots, padding)
    return None


def _argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """Return an argument of an operation, whether it is passed by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _add(node: fx.Node, values: Values, shapes: Shapes, slots: Slots) -> Vector | None:
    """Merge the slots of two summands of equal shape, element by element."""
    one, other = _argument(node, 0, "input"), _argument(node, 1, "other")
    if not (isinstance(one, fx.Node) and isinstance(other, fx.Node)) or shapes.get(one) != shapes.get(other):
        return None
    left, right = values.get(one), values.get(other)
    if left is None or right is None:
        return None
    slots.merge(left, right)
    return left


def _keeps_channels(node: fx.Node, in_shape: tuple[int, ...] | None, shape: tuple[int, ...]) -> bool:
    """Whether a reduction acts on spatial axes only."""
    dims = _argument(node, 1, "dim")
    if in_shape is None or dims is None:
        return False
    listed = dims if isinstance(dims, (tuple, list)) else (dims,)
    return all(isinstance(d, int) and d % len(in_shape) > 1 for d in listed) and len(shape) >= 2


def _concatenate(node: fx.Node, values: Values) -> Vector | None:
    parts, dim = _argument(node, 0, "tensors"), _argument(node, 1, "dim", 0)
    if dim != 1 or not isinstance(parts, (tuple, list)):
        return None
    found = [values.get(part) if isinstance(part, fx.Node) else None for part in parts]
    return np.concatenate([v for v in found if v is not None]) if all(v is not None for v in found) else None


def _indexes_only_space(index: Any, in_shape: tuple[int, ...] | None) -> bool:
    """Whether an index keeps axes 0 and 1 whole and does not move or drop an axis."""
    whole = slice(None)
    return (
        in_shape is not None
        and isinstance(index, tuple)
        and len(index) <= len(in_shape)
        and all(isinstance(i, slice) for i in index)
        and index[:2] == (whole, whole)
    )


def _pad(
    node: fx.Node,
    incoming: Vector,
    in_shape: tuple[int, ...] | None,
    slots: Slots,
    padding: dict[str, tuple[Vector, Vector]],
) -> Vector | None:
    """Propagate through zero padding.

    Spatial padding keeps the slots; padding of axis 1 adds new slots for its zeros. The widths must be passed by
    position.
    """
    if in_shape is None or len(node.args) < 2 or not isinstance(node.args[1], (tuple, list)):
        return None
    mode, value = _argument(node, 2, "mode", "constant"), _argument(node, 3, "value")
    widths = [w for w in node.args[1] if isinstance(w, int)]
    if mode != "constant" or value not in (None, 0, 0.0) or len(widths) != len(node.args[1]):
        return None
    place = 2 * (len(in_shape) - 2)  # position of axis 1 in the list, which starts at the last axis
    if len(widths) <= place:
        return incoming
    if len(widths) != place + 2 or min(widths[place:]) < 0:
        return None
    left, right = slots.add(widths[place]), slots.add(widths[place + 1])
    padding[node.name] = (left, right)
    return np.concatenate([left, incoming, right])
