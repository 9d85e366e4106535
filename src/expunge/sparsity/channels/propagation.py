"""Slots of channels, and how every operation of a traced network carries them on."""

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
Note = Callable[[str, int, Vector], None]


class Slots:
    """Union-find over channel slots; a pinned slot pins whatever it is joined with."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._pinned: list[bool] = []

    def open(self, count: int, *, pinned: bool = False) -> Vector:
        """`count` new slots."""
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        self._pinned.extend([pinned] * count)
        return np.arange(first, first + count, dtype=np.int64)

    def find(self, slot: int) -> int:
        """The representative of a slot's class."""
        while self._parent[slot] != slot:
            self._parent[slot] = self._parent[self._parent[slot]]
            slot = self._parent[slot]
        return slot

    def roots(self, vector: Vector) -> Vector:
        """Representatives of many slots."""
        return np.asarray([self.find(int(slot)) for slot in vector], dtype=np.int64)

    def join(self, a: Vector, b: Vector) -> None:
        """Join two vectors slot by slot."""
        for left, right in zip(a.tolist(), b.tolist(), strict=True):
            one, two = sorted((self.find(left), self.find(right)))
            self._parent[two] = one
            self._pinned[one] = self._pinned[one] or self._pinned[two]

    def pin(self, vector: Vector | None) -> None:
        """Pin slots: they must stay."""
        for slot in () if vector is None else vector.tolist():
            self._pinned[self.find(slot)] = True

    def pinned(self, root: int) -> bool:
        """Whether a class is pinned."""
        return self._pinned[root]


#: Modules that map a channel of zeros to a channel of zeros and mix no channels.
_PASSING = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.ELU, nn.Tanh, nn.Hardtanh, nn.Hardswish, nn.Identity),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d),
)
_PASSING_CALLS: set[Any] = {
    *(torch.relu, torch.tanh, torch.max_pool1d, torch.max_pool2d, torch.avg_pool1d, torch.adaptive_avg_pool1d),
    *(functional.relu, functional.relu6, functional.leaky_relu, functional.gelu, functional.silu, functional.elu),
    *(functional.tanh, functional.hardswish, functional.dropout, functional.dropout2d, functional.max_pool1d),
    *(functional.max_pool2d, functional.avg_pool1d, functional.avg_pool2d, functional.adaptive_avg_pool1d),
    *(functional.adaptive_avg_pool2d, functional.adaptive_max_pool2d, functional.interpolate),
    *("relu", "relu_", "tanh", "contiguous", "float", "to", "clone"),
}
_ADDITIONS: set[Any] = {operator.add, operator.iadd, torch.add, operator.sub, torch.sub, "add", "add_", "sub"}
_MEANS: set[Any] = {torch.mean, torch.sum, torch.amax, "mean", "sum", "amax"}
_FLATTENINGS: set[Any] = {torch.flatten, torch.reshape, "flatten", "view", "reshape"}
_SIZES = ("size", "dim", "numel")


def tracked(
    node: fx.Node,
    values: Values,
    shapes: Shapes,
    modules: Mapping[str, nn.Module],
    slots: Slots,
    note: Note,
    zeros: dict[str, tuple[Vector, Vector]],
) -> Vector | None:
    """Slots along axis 1 of what a node returns (None where it returns no tensor of at least two axes).

    Args:
        node: the node, after all those that it reads.
        values: slots of the nodes before it.
        shapes: shapes of all nodes, for a batch of two.
        modules: submodules by name.
        slots: the slots; joined and pinned here.
        note: told which parameter's axis carries which slots.
        zeros: filled with the zero slots of channel paddings, by node name.
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
    carried: Vector | None = None
    if node.op == "call_module" and first is not None and len(inputs) == 1:
        module = modules[str(node.target)]
        carried = _module(str(node.target), module, first, shape, slots, note)
    elif node.op in ("call_function", "call_method") and inputs:
        carried = _call(node, inputs, shape, values, shapes, slots, zeros)
    if carried is not None and len(carried) == shape[1]:
        return carried
    for vector in inputs:  # not understood: what goes in stays, and so does what comes out
        slots.pin(vector)
    return slots.open(shape[1], pinned=True)


def _module(
    name: str, module: nn.Module, incoming: Vector, shape: tuple[int, ...], slots: Slots, note: Note
) -> Vector | None:
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        if module.groups == 1:
            note(f"{name}.weight", 1, incoming)
            out = slots.open(module.out_channels)
        elif module.groups == module.in_channels == module.out_channels:
            out = incoming
        else:
            return None
    elif isinstance(module, nn.Linear):
        if len(shape) != 2:
            return None
        note(f"{name}.weight", 1, incoming)
        out = slots.open(module.out_features)
    elif isinstance(module, nn.modules.batchnorm._BatchNorm):
        if not (module.affine and module.track_running_stats):
            return None
        for part in ("weight", "bias", "running_mean", "running_var"):
            note(f"{name}.{part}", 0, incoming)
        return incoming
    elif isinstance(module, nn.Flatten):
        return _flattened(incoming, shape) if module.start_dim == 1 and module.end_dim == -1 else None
    else:
        return incoming if isinstance(module, _PASSING) else None
    note(f"{name}.weight", 0, out)
    if module.bias is not None:
        note(f"{name}.bias", 0, out)
    return out


def _flattened(incoming: Vector, shape: tuple[int, ...]) -> Vector | None:
    """`N x C x S` to `N x (C S)`: every channel S times."""
    repeats, rest = divmod(shape[1], len(incoming))
    return np.repeat(incoming, repeats) if len(shape) == 2 and rest == 0 else None


def _call(
    node: fx.Node,
    inputs: list[Vector],
    shape: tuple[int, ...],
    values: Values,
    shapes: Shapes,
    slots: Slots,
    zeros: dict[str, tuple[Vector, Vector]],
) -> Vector | None:
    target, first = node.target, inputs[0]
    source = shapes.get(node.all_input_nodes[0])
    if target in _PASSING_CALLS:
        return first if len(inputs) == 1 and source is not None and len(source) == len(shape) else None
    if target in _ADDITIONS:
        return _added(node, values, shapes, slots)
    if target in (operator.mul, operator.truediv, torch.mul, torch.div, "mul", "div"):
        return first if isinstance(_argument(node, 1, "other"), (int, float)) else None
    if target in _MEANS:
        return first if _keeps_channels(node, source, shape) else None
    if target in _FLATTENINGS:
        whole = source is not None and len(shape) == 2 and shape[1] == math.prod(source[1:])
        return _flattened(first, shape) if whole else None
    if target is torch.cat:
        return _joined(node, values)
    if target is operator.getitem:
        return first if _only_space(node.args[1], source) else None
    if target is functional.pad:
        return _padded(node, first, source, slots, zeros)
    return None


def _argument(node: fx.Node, place: int, name: str, default: Any = None) -> Any:
    """What an operation is given by position, or by name."""
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def _added(node: fx.Node, values: Values, shapes: Shapes, slots: Slots) -> Vector | None:
    """A sum of two tensors of one shape joins their slots one by one."""
    one, other = _argument(node, 0, "input"), _argument(node, 1, "other")
    if not (isinstance(one, fx.Node) and isinstance(other, fx.Node)) or shapes.get(one) != shapes.get(other):
        return None
    left, right = values.get(one), values.get(other)
    if left is None or right is None:
        return None
    slots.join(left, right)
    return left


def _keeps_channels(node: fx.Node, source: tuple[int, ...] | None, shape: tuple[int, ...]) -> bool:
    dims = _argument(node, 1, "dim")
    if source is None or dims is None:
        return False
    listed = dims if isinstance(dims, (tuple, list)) else (dims,)
    return all(isinstance(d, int) and d % len(source) > 1 for d in listed) and len(shape) >= 2


def _joined(node: fx.Node, values: Values) -> Vector | None:
    parts, dim = _argument(node, 0, "tensors"), _argument(node, 1, "dim", 0)
    if dim != 1 or not isinstance(parts, (tuple, list)):
        return None
    found = [values.get(part) if isinstance(part, fx.Node) else None for part in parts]
    return np.concatenate([v for v in found if v is not None]) if all(v is not None for v in found) else None


def _only_space(index: Any, source: tuple[int, ...] | None) -> bool:
    """Whether an index keeps axes 0 and 1 whole and every axis in place."""
    whole = slice(None)
    return (
        source is not None
        and isinstance(index, tuple)
        and len(index) <= len(source)
        and all(isinstance(i, slice) for i in index)
        and index[:2] == (whole, whole)
    )


def _padded(
    node: fx.Node,
    incoming: Vector,
    source: tuple[int, ...] | None,
    slots: Slots,
    zeros: dict[str, tuple[Vector, Vector]],
) -> Vector | None:
    """Zero padding: in space it keeps channels, along axis 1 it opens slots for the zeros. Widths by position only."""
    if source is None or len(node.args) < 2 or not isinstance(node.args[1], (tuple, list)):
        return None
    mode, value = _argument(node, 2, "mode", "constant"), _argument(node, 3, "value")
    widths = [w for w in node.args[1] if isinstance(w, int)]
    if mode != "constant" or value not in (None, 0, 0.0) or len(widths) != len(node.args[1]):
        return None
    place = 2 * (len(source) - 2)  # of axis 1 in the list, which starts at the last axis
    if len(widths) <= place:
        return incoming
    if len(widths) != place + 2 or min(widths[place:]) < 0:
        return None
    left, right = slots.open(widths[place]), slots.open(widths[place + 1])
    zeros[node.name] = (left, right)
    return np.concatenate([left, incoming, right])
