"""A piecewise-linear classifier as a list of operations, which is traced, hashed, executed and checked.

The set of operations is small because the independent checker (`expunge-check`) implements it a second time. See
docs/formats/network.md.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import torch

from expunge.core.hashing import hash_json, hash_tensor
from expunge.core.show import repr_fields

#: Operations that are affine in their inputs, with the roles of their tensors.
AFFINE: dict[str, tuple[str, ...]] = {
    "input": (),
    "linear": ("weight", "bias"),
    "conv": ("weight", "bias"),
    "batch_norm": ("mean", "variance", "weight", "bias"),
    "add_constant": ("value",),
    "multiply_constant": ("value",),
    "divide_constant": ("value",),
    "add": (),
    "average_pool": (),
    "mean": (),
    "reshape": (),
    "permute": (),
    "slice": (),
    "pad": (),
    "concat": (),
}
#: Piecewise-linear operations. Their choices are the bits of the activation pattern; one bit is called an atom.
CHOICES = ("relu", "max_pool")


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation of a network.

    Attributes:
        op: name of the operation, a key of `AFFINE` or one of `CHOICES`.
        inputs: numbers of earlier operations.
        shape: shape of the result for one record (no batch axis).
        attributes: JSON values (strides, axes, slope, ...).
        tensors: role (`weight`, `bias`, ...) to tensor name.
    """

    op: str
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tensors: Mapping[str, str] = dataclasses.field(default_factory=dict)

    __repr__ = repr_fields

    @property
    def atoms(self) -> int:
        """Number of pattern bits of this operation: one per unit (relu), one per window position (max_pool)."""
        if self.op == "relu":
            return math.prod(self.shape)
        if self.op == "max_pool":
            return math.prod(self.shape) * math.prod(self.attributes["kernel"])
        return 0

    def to_json(self) -> dict[str, Any]:
        return {
            "op": self.op,
            "inputs": list(self.inputs),
            "shape": list(self.shape),
            "attributes": {k: list(v) if isinstance(v, tuple) else v for k, v in self.attributes.items()},
            "tensors": dict(self.tensors),
        }


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A network as an ordered list of operations, with their float32 tensors.

    The first operation is the input, the last one yields the `K` logits.

    Attributes:
        operations: the list, see `Operation`.
        tensors: name to float32 tensor on the CPU (detached copies).
        input_shape: shape of one record.
        classes: number of classes K.
    """

    operations: tuple[Operation, ...]
    tensors: Mapping[str, torch.Tensor]
    input_shape: tuple[int, ...]
    classes: int

    __repr__ = repr_fields

    @property
    def inputs(self) -> int:
        """Number of features d of one record."""
        return math.prod(self.input_shape)

    @functools.cached_property
    def atom_slices(self) -> dict[int, slice]:
        """For each relu and max pool, the slice of its bits in the pattern of `L` bits."""
        places, start = {}, 0
        for number, operation in enumerate(self.operations):
            if operation.op in CHOICES:
                places[number] = slice(start, start + operation.atoms)
                start += operation.atoms
        return places

    @property
    def atoms(self) -> int:
        """Length of the activation pattern, L."""
        return sum(operation.atoms for operation in self.operations)

    @functools.cached_property
    def only_relu(self) -> bool:
        """Whether the network has no max pool."""
        return all(self.operations[number].op == "relu" for number in self.atom_slices)

    @functools.cached_property
    def shallow(self) -> bool:
        """Whether no relu or max pool depends on an earlier one: then pre-activations are affine in the input."""
        depends: list[bool] = []
        for operation in self.operations:
            after_choice = any(depends[i] for i in operation.inputs)
            if operation.op in CHOICES and after_choice:
                return False
            depends.append(after_choice or operation.op in CHOICES)
        return True

    def to_json(self) -> dict[str, Any]:
        """The body of network.json without the hash (docs/formats/network.md)."""
        return {
            "input_shape": list(self.input_shape),
            "classes": self.classes,
            "operations": [operation.to_json() for operation in self.operations],
            "tensors": {
                name: {"shape": list(tensor.shape), "hash": hash_tensor(tensor)}
                for name, tensor in sorted(self.tensors.items())
            },
        }

    @functools.cached_property
    def hash(self) -> str:
        """Hash of operations and tensors."""
        return hash_json(self.to_json())


def map_windows(size: tuple[int, ...], attributes: Mapping[str, Any], outputs: tuple[int, ...]) -> torch.Tensor:
    """Return the positions of pooling windows in the flattened plane: `n_out x k` int64, -1 on padding.

    Args:
        size: height and width (or length) of the plane.
        attributes: `kernel`, `stride`, `padding`, `dilation`, each with one number per axis.
        outputs: height and width (or length) of the result.
    """
    lines = []
    for axis, extent in enumerate(size):
        start = torch.arange(outputs[axis])[:, None] * attributes["stride"][axis] - attributes["padding"][axis]
        line = start + torch.arange(attributes["kernel"][axis])[None] * attributes["dilation"][axis]
        lines.append(torch.where((line >= 0) & (line < extent), line, -1))
    place = lines[0]
    for line, extent in zip(lines[1:], size[1:], strict=True):
        a, b = place[:, None, :, None], line[None, :, None, :]
        place = torch.where((a >= 0) & (b >= 0), a * extent + b, -1)
        place = place.reshape(place.shape[0] * place.shape[1], -1)
    return place


def reaches_padding(size: tuple[int, ...], attributes: Mapping[str, Any], outputs: tuple[int, ...]) -> bool:
    """Return whether any window of `map_windows` lies partly on padding (or beyond the plane, in ceil mode)."""
    for axis, extent in enumerate(size):
        start, stride = -attributes["padding"][axis], attributes["stride"][axis]
        reach = attributes["dilation"][axis] * (attributes["kernel"][axis] - 1)
        if start < 0 or start + (outputs[axis] - 1) * stride + reach >= extent:
            return True
    return False
