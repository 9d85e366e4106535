"""Checks of the operations of network.json: shapes fit, records do not mix, constants are float32 numbers.

The affine forms are computed for a chunk of patches at once, and replays for single records, so an operation across the
batch axis would give different networks in a proof and in use. Attributes are JSON numbers, but the network is executed
in float32, so a constant that is not a float32 number would be a different one in the execution.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge_check.errors import BadCertificate

Shape = tuple[int, ...]

#: Operations whose result has the shape of each of their inputs.
_SAME_SHAPE = ("relu", "batch_norm", "add_constant", "multiply_constant", "divide_constant", "add")
_LARGEST = float(np.finfo(np.float32).max)
_NORMAL = float(np.finfo(np.float32).tiny)


def check_operations(body: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> None:
    """Check that the operations form a network from the input to the logits.

    Args:
        body: network.json, with correct types.
        tensors: the tensors of the list.

    Raises:
        BadCertificate: an operation refers to a later one, or is not valid.
    """
    entries = list(body["operations"])
    shapes = [tuple(int(n) for n in entry["shape"]) for entry in entries]
    classes = int(body["classes"])
    if not entries or entries[0]["op"] != "input" or shapes[0] != tuple(body["input_shape"]):
        raise BadCertificate("the operation list does not start with its input")
    if shapes[-1] != (classes,) or classes < 2:
        raise BadCertificate("the operation list does not end in the logits")
    for number, entry in enumerate(entries):
        inputs = entry["inputs"]
        if any(not 0 <= int(i) < number for i in inputs) or (number and not inputs):
            raise BadCertificate("an operation refers to a later one")
        if number and entry["op"] == "input":
            raise BadCertificate("the operation list has a second input")
        if number:
            check_shapes(entry, [shapes[int(i)] for i in inputs], tensors)
        if entry["op"] == "relu" and (
            shapes[number] != shapes[int(inputs[0])] or not 0 <= entry["attributes"]["slope"] < 1
        ):
            raise BadCertificate("a relu changes the shape or has a slope outside [0, 1)")
    variances = {entry["tensors"]["variance"] for entry in entries if entry["op"] == "batch_norm"}
    if any(not (tensors[name] >= 0).all() for name in variances):  # once for all operations that name it
        raise BadCertificate("BatchNorm has a negative variance")


def check_shapes(entry: Mapping[str, Any], inputs: list[Shape], tensors: Mapping[str, NDArray[Any]]) -> None:
    """Check the shapes and attributes of one operation, without reading the numbers of its tensors.

    Args:
        entry: the operation.
        inputs: shapes of its inputs, without the batch axis.
        tensors: the tensors of the list.

    Raises:
        BadCertificate: shapes do not fit, an axis does not exist, or an attribute is not a float32 number.
    """
    op, at = str(entry["op"]), entry["attributes"]
    shape: Shape = tuple(int(n) for n in entry["shape"])
    tensors_by_role = {str(role): tensors[name] for role, name in entry["tensors"].items()}
    if op != "concat" and len(inputs) != (2 if op == "add" else 1):
        raise BadCertificate(f"operation {op} has {len(inputs)} inputs")
    if op in _SAME_SHAPE and any(before != shape for before in inputs):
        raise BadCertificate(f"operation {op} changes the shape {inputs[0]} to {shape}")
    first = inputs[0]
    if op.endswith("_constant"):
        _check_constant(op, tensors_by_role["value"].shape, shape)
    elif op in ("linear", "conv"):
        _check_weights(op, at, first, shape, tensors_by_role)
    elif op == "batch_norm":
        _check_batch_norm(float(at["epsilon"]), shape, tensors_by_role)
    elif op == "relu":
        if not shape:
            raise BadCertificate("a relu has a result without axes, which has no units")
        _check_float32("the slope of a relu", at["slope"])
    elif op == "pad":
        _check_float32("the value of a padding", at["value"])
        pairs = [int(v) for v in at["pairs"]]
        both = [*([(0, 0)] * (len(first) - len(pairs) // 2)), *zip(pairs[-2::-2], pairs[::-2], strict=False)]
        if (
            len(pairs) % 2
            or len(both) != len(first)
            or any(n + min(0, low) + min(0, high) < 1 for n, (low, high) in zip(first, both, strict=False))
            or shape != tuple(n + low + high for n, (low, high) in zip(first, both, strict=True))
        ):
            raise BadCertificate(f"a padding by {pairs} does not make {shape} of {first}")
    elif op in ("average_pool", "max_pool"):
        if op == "average_pool" and at["adaptive"]:
            plane = tuple(n * k for n, k in zip(shape[1:], at["kernel"], strict=True))
            if at["stride"] != at["kernel"] or any(at["padding"]) or first[1:] != plane:
                raise BadCertificate(f"adaptive pooling by windows of {at['kernel']} does not make {shape} of {first}")
        if op == "average_pool" and any(2 * pad > wide for pad, wide in zip(at["padding"], at["kernel"], strict=True)):
            raise BadCertificate(f"operation {op} has a padding above half of its kernel")
        _check_plane(op, at, at["kernel"], first, shape, ceiling=op == "max_pool")
    else:
        _check_arrangement(op, at, inputs, shape)


def _check_arrangement(op: str, at: Mapping[str, Any], inputs: list[Shape], shape: Shape) -> None:
    """Check that rearrangements and means yield exactly the recorded shape, so nothing larger is ever allocated."""
    first = inputs[0]
    if op in ("slice", "concat"):
        _check_axes(op, [int(at["axis"])], len(first))
        axis, size = int(at["axis"]), 0
        if op == "slice":
            if int(at["step"]) < 1:
                raise BadCertificate("a slice runs backwards")
            size = len(range(*slice(int(at["start"]), int(at["stop"]), int(at["step"])).indices(first[axis])))
        else:
            size = sum(before[axis] for before in inputs if len(before) == len(first))
        others = {(*before[:axis], *before[axis + 1 :]) for before in inputs}
        found: Shape = (*first[:axis], size, *first[axis + 1 :])
        if len(others) > 1 or found != shape:
            raise BadCertificate(f"operation {op} yields {found}, not the recorded {shape}")
    elif op in ("mean", "permute"):
        axes = [int(a) for a in at["axes"]]
        _check_axes(op, axes, len(first))
        if op == "mean" and not axes:  # in torch that is the mean over all axes, the batch included
            raise BadCertificate("a mean names no axis")
        if op == "permute":
            if len(axes) != len(first):
                raise BadCertificate(f"a permutation names {len(axes)} axes of {len(first)}")
            found = tuple(first[a] for a in axes)
        elif at["keep"]:
            found = tuple(1 if a in axes else n for a, n in enumerate(first))
        else:
            found = tuple(n for a, n in enumerate(first) if a not in axes)
        if found != shape:
            raise BadCertificate(f"operation {op} yields {found}, not the recorded {shape}")
    elif op == "reshape" and math.prod(first) != math.prod(shape):
        raise BadCertificate(f"operation {op} of {first} cannot be the recorded {shape}")


def _check_plane(
    op: str, at: Mapping[str, Any], kernel: Any, first: Shape, shape: Shape, *, ceiling: bool = False
) -> None:
    """Check that the number of windows is that of the plane, rounded down (for max_pool: down or up)."""
    if len(first) != len(shape) or len(first) not in (2, 3) or (op != "conv" and first[0] != shape[0]):
        raise BadCertificate(f"operation {op} between {first} and {shape} has no plane")
    axes = len(shape) - 1
    dilations = at.get("dilation", [1] * axes)
    for axis, n in enumerate(first[1:]):
        step, pad, wide = int(at["stride"][axis]), int(at["padding"][axis]), int(kernel[axis])
        if step < 1 or pad < 0 or wide < 1 or dilations[axis] < 1:
            raise BadCertificate(f"operation {op} has a stride, dilation or kernel below 1, or a negative padding")
        room = n + 2 * pad - dilations[axis] * (wide - 1) - 1
        most = -(-room // step) if ceiling else room // step
        if not max(1, room // step + 1) <= shape[1 + axis] <= most + 1:
            raise BadCertificate(f"operation {op} does not make {shape} of {first}")


def _check_float32(what: str, value: Any) -> None:
    """Check that a number that is executed in float32 is a float32 number."""
    number = float(value)
    if not abs(number) <= _LARGEST or float(np.float32(number)) != number:
        raise BadCertificate(
            f"{what} is {value!r}, which is not a float32 number: the executed network has another value"
        )


def _check_axes(op: str, axes: list[int], dims: int) -> None:
    """Check axes. They do not count the batch axis, so a negative one could refer to it."""
    if any(not 0 <= axis < dims for axis in axes) or len(set(axes)) != len(axes):
        raise BadCertificate(f"operation {op} has the axes {axes}, but its input has {dims} axes")


def _check_constant(op: str, value: Shape, shape: Shape) -> None:
    """Check that a constant is the same for every record and does not enlarge the result."""
    whole = (1, *shape)
    if len(value) > len(whole) or np.broadcast_shapes(whole, value) != whole:
        raise BadCertificate(f"operation {op} has a constant of shape {value}, which differs between records")


def _check_weights(
    op: str, at: Mapping[str, Any], first: Shape, shape: Shape, tensors_by_role: Mapping[str, NDArray[Any]]
) -> None:
    weight: Shape = tensors_by_role["weight"].shape
    if op == "linear":
        fits = len(weight) == 2 and len(first) >= 1 and weight[1] == first[-1] and shape == (*first[:-1], weight[0])
    else:
        groups = int(at["groups"])
        fits = len(first) in (2, 3) and len(weight) == len(first) + 1 and len(shape) == len(first) and groups >= 1
        fits = fits and weight[0] % groups == 0 and weight[1] * groups == first[0] and shape[0] == weight[0]
        if fits:
            _check_plane(op, at, weight[2:], first, shape)
    if not fits or ("bias" in tensors_by_role and tensors_by_role["bias"].shape != weight[:1]):
        raise BadCertificate(f"operation {op} has a weight of shape {weight} between {first} and {shape}")


def _check_batch_norm(epsilon: float, shape: Shape, tensors_by_role: Mapping[str, NDArray[Any]]) -> None:
    """Check BatchNorm. Rounding epsilon to float32 is an allowed rounding only if its error is relative."""
    if not shape or any(tensor.shape != shape[:1] for tensor in tensors_by_role.values()):
        raise BadCertificate("BatchNorm has a tensor that is not one number a channel")
    if not (math.isfinite(epsilon) and (epsilon == 0 or _NORMAL <= epsilon <= _LARGEST)):
        raise BadCertificate(f"BatchNorm has the epsilon {epsilon!r}, which is outside the normal range of float32")
