"""What an operation of network.json may say: shapes that fit, records kept apart, constants that float32 holds.

The affine forms are computed for a whole chunk of patches at once and replays for one record, so an operation that
looks along the batch axis would mean one network in a proof and another one in use. Attributes are JSON numbers, but
the network is executed in float32: one that float32 cannot hold would be another number there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .files import BadCertificate

Shape = tuple[int, ...]

#: Operations whose result has the shape of each of their inputs.
_SAME = ("relu", "batch_norm", "add_constant", "multiply_constant", "divide_constant", "add")
_LARGEST = float(np.finfo(np.float32).max)
_NORMAL = float(np.finfo(np.float32).tiny)


def check_operations(body: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> None:
    """Whether the operations follow from each other, from the input to the logits.

    Args:
        body: network.json, of the right types.
        tensors: of the list.

    Raises:
        BadCertificate: an operation refers to a later one, or cannot be meant.
    """
    entries = list(body["operations"])
    shapes = [tuple(int(n) for n in entry["shape"]) for entry in entries]
    classes = int(body["classes"])
    if not entries or entries[0]["kind"] != "input" or shapes[0] != tuple(body["input_shape"]):
        raise BadCertificate("the operation list does not start with its input")
    if shapes[-1] != (classes,) or classes < 2:
        raise BadCertificate("the operation list does not end in the logits")
    for number, entry in enumerate(entries):
        inputs = entry["inputs"]
        if any(not 0 <= int(i) < number for i in inputs) or (number and not inputs):
            raise BadCertificate("an operation refers to a later one")
        if number and entry["kind"] == "input":
            raise BadCertificate("a second input")
        if number:
            check_form(entry, [shapes[int(i)] for i in inputs], tensors)
        if entry["kind"] == "relu" and (
            shapes[number] != shapes[int(inputs[0])] or not 0 <= entry["attributes"]["slope"] < 1
        ):
            raise BadCertificate("a relu changes the shape or has a slope outside [0, 1)")


def check_form(entry: Mapping[str, Any], inputs: list[Shape], tensors: Mapping[str, NDArray[Any]]) -> None:
    """Raise where an operation cannot be meant.

    Args:
        entry: the operation.
        inputs: shapes of its inputs, without the batch axis.
        tensors: the tensors of the list.

    Raises:
        BadCertificate: shapes do not fit, an axis does not exist, or float32 cannot hold a constant.
    """
    kind, at = str(entry["kind"]), entry["attributes"]
    shape: Shape = tuple(int(n) for n in entry["shape"])
    held = {str(role): tensors[name] for role, name in entry["tensors"].items()}
    if kind != "concat" and len(inputs) != (2 if kind == "add" else 1):
        raise BadCertificate(f"operation {kind} has {len(inputs)} inputs")
    if kind in _SAME and any(before != shape for before in inputs):
        raise BadCertificate(f"operation {kind} changes the shape {inputs[0]} to {shape}")
    first = inputs[0]
    if kind.endswith("_constant"):
        _check_constant(kind, held["value"].shape, shape)
    elif kind in ("linear", "conv"):
        _check_weights(kind, at, first, shape, held)
    elif kind == "batch_norm":
        _check_batch_norm(float(at["epsilon"]), shape, held)
    elif kind == "relu":
        _check_held("the slope of a relu", at["slope"])
    elif kind == "pad":
        _check_held("the value of a padding", at["value"])
        pairs = [int(v) for v in at["pairs"]]
        both = [*([(0, 0)] * (len(first) - len(pairs) // 2)), *zip(pairs[-2::-2], pairs[::-2], strict=False)]
        if (
            len(pairs) % 2
            or len(both) != len(first)
            or shape != tuple(n + low + high for n, (low, high) in zip(first, both, strict=True))
        ):
            raise BadCertificate(f"a padding by {pairs} does not make {shape} of {first}")
    elif kind in ("average_pool", "max_pool"):
        if kind == "average_pool" and at["adaptive"]:
            plane = tuple(n * k for n, k in zip(shape[1:], at["kernel"], strict=True))
            if at["stride"] != at["kernel"] or any(at["padding"]) or first[1:] != plane:
                raise BadCertificate(f"adaptive pooling by windows of {at['kernel']} does not make {shape} of {first}")
        _check_plane(kind, at, at["kernel"], first, shape, ceiling=True)
    else:
        _check_arrangement(kind, at, inputs, shape)


def _check_arrangement(kind: str, at: Mapping[str, Any], inputs: list[Shape], shape: Shape) -> None:
    """Rearrangements and means yield exactly the recorded shape: nothing larger is ever allocated."""
    first = inputs[0]
    if kind in ("slice", "concat"):
        _check_axes(kind, [int(at["axis"])], len(first))
        axis, size = int(at["axis"]), 0
        if kind == "slice":
            if int(at["step"]) < 1:
                raise BadCertificate("a slice runs backwards")
            size = len(range(*slice(int(at["start"]), int(at["stop"]), int(at["step"])).indices(first[axis])))
        else:
            size = sum(before[axis] for before in inputs if len(before) == len(first))
        others = {(*before[:axis], *before[axis + 1 :]) for before in inputs}
        found: Shape = (*first[:axis], size, *first[axis + 1 :])
        if len(others) > 1 or found != shape:
            raise BadCertificate(f"operation {kind} yields {found}, not the recorded {shape}")
    elif kind in ("mean", "permute"):
        axes = [int(a) for a in at["axes"]]
        _check_axes(kind, axes, len(first))
        if kind == "permute":
            if len(axes) != len(first):
                raise BadCertificate(f"a permutation names {len(axes)} axes of {len(first)}")
            found = tuple(first[a] for a in axes)
        elif at["keep"]:
            found = tuple(1 if a in axes else n for a, n in enumerate(first))
        else:
            found = tuple(n for a, n in enumerate(first) if a not in axes)
        if found != shape:
            raise BadCertificate(f"operation {kind} yields {found}, not the recorded {shape}")
    elif kind == "reshape" and math.prod(first) != math.prod(shape):
        raise BadCertificate(f"operation {kind} of {first} cannot be the recorded {shape}")


def _check_plane(
    kind: str, at: Mapping[str, Any], kernel: Any, first: Shape, shape: Shape, *, ceiling: bool = False
) -> None:
    """Windows lie where the format says: their number is that of the plane, rounded down (of pools: or up)."""
    if len(first) != len(shape) or len(first) not in (2, 3) or (ceiling and first[0] != shape[0]):
        raise BadCertificate(f"operation {kind} between {first} and {shape} has no plane")
    axes = len(shape) - 1
    dilations = at.get("dilation", [1] * axes)
    for axis, n in enumerate(first[1:]):
        step, pad, wide = int(at["stride"][axis]), int(at["padding"][axis]), int(kernel[axis])
        if step < 1 or pad < 0 or wide < 1 or dilations[axis] < 1:
            raise BadCertificate(f"operation {kind} has a stride, dilation or kernel below 1, or a negative padding")
        room = n + 2 * pad - dilations[axis] * (wide - 1) - 1
        most = -(-room // step) if ceiling else room // step
        if not max(1, room // step + 1) <= shape[1 + axis] <= most + 1:
            raise BadCertificate(f"operation {kind} does not make {shape} of {first}")


def _check_held(what: str, value: Any) -> None:
    """A number that is executed in float32 must be one of float32's."""
    number = float(value)
    if not abs(number) <= _LARGEST or float(np.float32(number)) != number:
        raise BadCertificate(f"{what} is {value!r}, which float32 cannot hold: the executed network has another one")


def _check_axes(kind: str, axes: list[int], dims: int) -> None:
    """Axes do not count the batch, so a negative one could mean it."""
    if any(not 0 <= axis < dims for axis in axes) or len(set(axes)) != len(axes):
        raise BadCertificate(f"operation {kind} names the axes {axes} of a record of {dims}")


def _check_constant(kind: str, value: Shape, shape: Shape) -> None:
    """A constant must be the same for every record, and must not widen the result."""
    whole = (1, *shape)
    if len(value) > len(whole) or np.broadcast_shapes(whole, value) != whole:
        raise BadCertificate(f"operation {kind} has a constant of shape {value}, which differs between records")


def _check_weights(
    kind: str, at: Mapping[str, Any], first: Shape, shape: Shape, held: Mapping[str, NDArray[Any]]
) -> None:
    weight: Shape = held["weight"].shape
    if kind == "linear":
        fits = len(weight) == 2 and len(first) >= 1 and weight[1] == first[-1] and shape == (*first[:-1], weight[0])
    else:
        groups = int(at["groups"])
        fits = len(first) in (2, 3) and len(weight) == len(first) + 1 and len(shape) == len(first) and groups >= 1
        fits = fits and weight[0] % groups == 0 and weight[1] * groups == first[0] and shape[0] == weight[0]
        if fits:
            _check_plane(kind, at, weight[2:], first, shape)
    if not fits or ("bias" in held and held["bias"].shape != weight[:1]):
        raise BadCertificate(f"operation {kind} has a weight of shape {weight} between {first} and {shape}")


def _check_batch_norm(epsilon: float, shape: Shape, held: Mapping[str, NDArray[Any]]) -> None:
    """Rounding epsilon to float32 is one of the roundings allowed, if it is relative: no subnormal, no cancellation."""
    if not shape or any(tensor.shape != shape[:1] for tensor in held.values()):
        raise BadCertificate("BatchNorm has a tensor that is not one number a channel")
    if not (math.isfinite(epsilon) and (epsilon == 0 or _NORMAL <= epsilon <= _LARGEST)):
        raise BadCertificate(f"BatchNorm has the epsilon {epsilon!r}, which float32 cannot hold")
    if not (held["variance"] >= 0).all():
        raise BadCertificate("BatchNorm has a negative variance")
