"""How far the executed float32 numbers can lie from the affine forms of a region.

For an input whose executed activation bits equal the pattern, the executed network made exactly the choices of the
pattern, so it evaluated the pattern's affine forms in float32. Each affine operation with n roundings a result obeys
the running error bound [Higham2002]_, in any order of summation and with or without fused multiply-add:

    |v^ - v| <= |W| e + gamma_n (|W| (M + e) + |b|) + n 2^-126,     gamma_n = n u / (1 - n u),  u = 2^-24

with e the error and M the magnitude of the inputs over the box. It does not hold for Winograd or FFT convolutions,
TF32, or autocast.

.. [Higham2002] Higham: Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from .execute import Tensors, apply, cast, windows
from .network import CHOICES, Network, Operation

UNIT32 = 2.0**-24
UNIT64 = 2.0**-53
TINY32 = 2.0**-126
#: Roundings allowed for one BatchNorm result, however it is computed.
_BATCH_NORM = 10
_SLACK = 1.0 + 1e-9


def gamma(n: float, unit: float) -> float:
    """n u / (1 - n u)."""
    return n * unit / (1 - n * unit)


def roundings(operation: Operation, tensors: Tensors, shape: tuple[int, ...]) -> int:
    """Roundings that stand between the inputs of an operation and one of its results; `shape`: of its first input."""
    kind = operation.kind
    if kind in ("linear", "conv"):
        return math.prod(tensors[operation.tensors["weight"]].shape[1:]) + 2
    if kind == "batch_norm":
        return _BATCH_NORM
    if kind == "average_pool":
        return math.prod(operation.attributes["kernel"]) + 2
    if kind == "mean":
        return math.prod(shape[axis] for axis in operation.attributes["axes"]) + 2
    if kind in ("add_constant", "multiply_constant", "divide_constant", "add"):
        return 2
    return 0


def path_roundings(network: Network) -> int:
    """Roundings on the longest way from input to output, all operations added up (an upper bound for any path).

    Not below the count of expunge-check, which allows two more an operation: what is solved here must pass there.
    """
    total = 2 * len(network.operations)
    for operation in network.operations:
        shape = network.operations[operation.inputs[0]].shape if operation.inputs else ()
        total += roundings(operation, network.tensors, shape) + 2
    return total


@dataclasses.dataclass(frozen=True, eq=False)
class Rounding:
    """Bounds over the box, for `B` patterns.

    Attributes:
        margins: `B x L`, float32 error of each margin: executed bits equal to the pattern imply margin >= -this.
        logits: `B x K`, float32 error of each logit.
        margin_size, logit_size: bounds on the margins' and logits' absolute values over the box (sums of absolute
            products, so they also bound every intermediate sum).
    """

    margins: Tensor
    logits: Tensor
    margin_size: Tensor
    logit_size: Tensor


def _absolute(tensors: Tensors) -> dict[str, Tensor]:
    return {name: tensor.abs() for name, tensor in cast(tensors, torch.float64).items()}


def _sizes(operation: Operation, inputs: list[Tensor], tensors: Tensors, *, constants: bool) -> Tensor:
    """|W| x + |b| of an affine operation (without |b| where `constants` is false)."""
    if operation.kind == "batch_norm":
        names = operation.tensors
        shape = (1, -1, *(1,) * (inputs[0].dim() - 2))
        scale = 1 / (tensors[names["variance"]] + operation.attributes["epsilon"]).sqrt()
        if "weight" in names:
            scale = scale * tensors[names["weight"]]
        x = inputs[0] + tensors[names["mean"]].view(shape) if constants else inputs[0]
        y = x * scale.view(shape)
        return y + tensors[names["bias"]].view(shape) if constants and "bias" in names else y
    attributes = dict(operation.attributes)
    for key in ("sign", "value"):
        if key in attributes:
            attributes[key] = abs(attributes[key]) if constants else (1 if key == "sign" else 0.0)
    named = dict(operation.tensors)
    if not constants:
        named.pop("bias", None)
        if operation.kind == "add_constant":
            return inputs[0].clone()
    plain = Operation(operation.kind, operation.inputs, operation.shape, attributes, named)
    return apply(plain, inputs, tensors)


def execution_error(network: Network, bits: Tensor, low: Tensor, high: Tensor) -> Rounding:
    """Error bounds of executed float32 on the regions of `bits` (`B x L` bool) within the box `low..high`."""
    tensors = _absolute(network.tensors)
    count = bits.shape[0]
    largest = torch.maximum(low.abs(), high.abs()).double().reshape(1, *network.input_shape)
    sizes: list[Tensor] = []
    errors: list[Tensor] = []
    found_size: list[Tensor] = []
    found_error: list[Tensor] = []
    for number, operation in enumerate(network.operations):
        if operation.kind == "input":
            size = largest.expand(count, *network.input_shape)
            sizes.append(size)
            errors.append(torch.zeros_like(size))
            continue
        x, e = [sizes[i] for i in operation.inputs], [errors[i] for i in operation.inputs]
        if operation.kind in CHOICES:
            chosen = bits[:, network.atom_slices[number]]
            if operation.kind == "relu":
                found_size.append(x[0].flatten(1))
                found_error.append(e[0].flatten(1))
                on, slope = chosen.reshape(x[0].shape), operation.attributes["slope"]
                sizes.append(torch.where(on, x[0], slope * x[0]))
                errors.append(torch.where(on, e[0], slope * e[0] + UNIT32 * slope * (x[0] + e[0]) * 2))
            else:
                shape = (count, *operation.shape)
                for values, kept, found in ((x[0], sizes, found_size), (e[0], errors, found_error)):
                    spread = windows(operation, values)
                    won = torch.where(chosen.reshape(spread.shape), spread, torch.zeros_like(spread)).sum(-1)
                    both = torch.where(torch.isfinite(spread), spread, torch.zeros_like(spread)) + won.unsqueeze(-1)
                    found.append(both.flatten(1))
                    kept.append(won.reshape(shape))
            continue
        steps = roundings(operation, network.tensors, network.operations[operation.inputs[0]].shape)
        size = _sizes(operation, x, tensors, constants=True)
        error = _sizes(operation, e, tensors, constants=False)
        sizes.append(size)
        if steps:
            error = error + gamma(steps, UNIT32) * (size + error) + steps * TINY32
        errors.append(error * _SLACK)
    empty = torch.zeros(count, 0, dtype=torch.float64)
    return Rounding(
        margins=torch.cat(found_error, 1) if found_error else empty,
        logits=errors[-1],
        margin_size=torch.cat(found_size, 1) if found_size else empty,
        logit_size=sizes[-1],
    )
