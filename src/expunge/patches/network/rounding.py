"""How far the executed float32 numbers can lie from the affine forms of a region.

For an input whose executed activation bits equal the pattern, the executed network made exactly the choices of the
pattern, so it evaluated the pattern's affine forms in float32. Each affine operation with n roundings a result obeys
the running error bound [Higham2002]_, in any order of summation and with or without fused multiply-add:

    |v^ - v| <= |W| e + gamma_n (|W| (M + e) + |b|) + n 2^-126,     gamma_n = n u / (1 - n u),  u = 2^-24

with e the error and M the magnitude of the inputs over the box. The last term is for products that underflow; where
such a product is multiplied again (BatchNorm in another order, division by a reciprocal, see `_absolute_error`) it is
larger. The bound holds where nothing overflows: |W| (M + e) + |b| bounds every partial sum, so by induction nothing
does while the largest of these sums, `Rounding.peak`, stays below 2^127. It does not hold for Winograd or FFT
convolutions, TF32, or autocast, nor where subnormal numbers are flushed to zero.

.. [Higham2002] Higham: Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from .execute import Tensors, apply, cast, windows
from .operations import CHOICES, Network, Operation

UNIT32 = 2.0**-24
UNIT64 = 2.0**-53
TINY32 = 2.0**-126
TINY64 = 2.0**-1022
#: Executed numbers are kept below this: half of what float32 can hold.
OVERFLOW = 2.0**127
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


def roundings_back(operation: Operation, tensors: Tensors) -> int:
    """Roundings between the cotangents of results and that of one input: there the sums run over results."""
    kind = operation.kind
    if kind == "linear":
        return tensors[operation.tensors["weight"]].shape[0] + 2
    if kind == "conv":
        weight = tensors[operation.tensors["weight"]].shape
        return weight[0] // int(operation.attributes["groups"]) * math.prod(weight[2:]) + 2
    if kind == "max_pool":
        return 2 * math.prod(operation.attributes["kernel"]) + 2
    return math.prod(operation.attributes["kernel"]) + 2 if kind == "average_pool" else 2


def evaluation_steps(network: Network) -> int:
    """n of the float64 evaluation's 4 gamma_n: of values, and of the reverse pass as far as 4 n does not cover it."""
    shared = network.atoms + network.inputs
    back = sum(roundings_back(operation, network.tensors) + 1 for operation in network.operations[1:])
    return max(path_roundings(network) + shared, (back + shared + 8) // 3 + 1)


@dataclasses.dataclass(frozen=True, eq=False)
class Rounding:
    """Bounds over the box, for `B` patterns.

    Attributes:
        margins: `B x L`, float32 error of each margin: executed bits equal to the pattern imply margin >= -this.
        logits: `B x K`, float32 error of each logit.
        margin_size, logit_size: bounds on the margins' and logits' absolute values over the box (sums of absolute
            products, so they also bound every intermediate sum).
        peak: `B`, the largest absolute number that the execution may come by, in any order.
        dust: `B`, what underflow in a float64 evaluation of a bound may change it by.
    """

    margins: Tensor
    logits: Tensor
    margin_size: Tensor
    logit_size: Tensor
    peak: Tensor
    dust: Tensor

    def bounded(self, reach: Tensor | float, claim: str) -> Tensor:
        """For which patterns the bounds hold: all are finite, and executed numbers cannot overflow, `B` bool.

        Args:
            reach: how far beyond the base's numbers the patches' own arithmetic may come.
            claim: `float32` or `real` (nothing is executed).
        """
        found = (self.peak + reach <= OVERFLOW) if claim == "float32" else torch.ones_like(self.peak, dtype=torch.bool)
        for field in dataclasses.fields(self):
            found = found & torch.isfinite(getattr(self, field.name)).view(len(found), -1).all(1)
        return found


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


def _absolute_error(operation: Operation, x: Tensor, tensors: Tensors, steps: int, tiny: float) -> Tensor | float:
    """What underflow adds to a result; `x`: sizes of the inputs, their errors included; `tensors`: absolute values.

    Each product may lose `tiny`. In BatchNorm, which may be computed in any order, and in a division done by a
    reciprocal, what is lost may be multiplied by another factor of the product afterwards.
    """
    if operation.kind == "batch_norm":
        mean, weight, inverse, _ = _batch_norm(operation, tensors, x.dim())
        return steps * tiny * (1 + x + mean + weight + inverse)
    return steps * tiny * (1 + x) if operation.kind == "divide_constant" else steps * tiny


def _batch_norm(operation: Operation, tensors: Tensors, dims: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, weight, 1 / sqrt(variance + epsilon) and bias, shaped for a batch of `dims` axes."""
    names = operation.tensors
    variance = tensors[names["variance"]]
    held = {
        "mean": tensors[names["mean"]],
        "weight": tensors[names["weight"]] if "weight" in names else torch.ones_like(variance),
        "inverse": 1 / (variance + operation.attributes["epsilon"]).sqrt(),
        "bias": tensors[names["bias"]] if "bias" in names else torch.zeros_like(variance),
    }
    mean, weight, inverse, bias = (part.view(1, -1, *(1,) * (dims - 2)) for part in held.values())
    return mean, weight, inverse, bias


def _peak(operation: Operation, x: Tensor, y: Tensor, tensors: Tensors, shape: tuple[int, ...]) -> Tensor:
    """The largest absolute number that executing an affine operation may come by, in any order: `B`.

    Args:
        operation: of the list.
        x: sizes of the inputs, their errors included.
        y: the same of the results, which bounds every partial sum of products. A mean may be divided after it is
            summed, and BatchNorm may multiply its factors in any order.
        tensors: absolute values.
        shape: of the first input.
    """
    most = _largest(y)
    if operation.kind == "batch_norm":
        mean, weight, inverse, bias = _batch_norm(operation, tensors, x.dim())
        whole = (x + mean).clamp(min=1) * weight.clamp(min=1) * inverse.clamp(min=1) + bias.max()
        return torch.maximum(most, _largest(whole))
    if operation.kind == "divide_constant":
        return torch.maximum(most, (1 / tensors[operation.tensors["value"]]).max())
    if operation.kind == "average_pool":
        return most * math.prod(operation.attributes["kernel"])
    return most * math.prod(shape[axis] for axis in operation.attributes["axes"]) if operation.kind == "mean" else most


def _largest(x: Tensor) -> Tensor:
    return x.flatten(1).amax(1) if x.numel() else x.new_zeros(len(x))


def claimed_error(network: Network, bits: Tensor, low: Tensor, high: Tensor, claim: str) -> Rounding:
    """The error bounds that a claim is about: of float32, or only of what a float64 evaluation loses by underflow."""
    if claim == "real":
        return execution_error(network, bits, low, high, unit=0.0, tiny=TINY64)
    return execution_error(network, bits, low, high)


def execution_error(
    network: Network, bits: Tensor, low: Tensor, high: Tensor, *, unit: float = UNIT32, tiny: float = TINY32
) -> Rounding:
    """Error bounds of executed float32 on the regions of `bits` (`B x L` bool) within the box `low..high`.

    Args:
        network: the operation list.
        bits: patterns.
        low: lower ends of the box.
        high: its upper ends.
        unit: relative error of a rounding (0: only what underflow loses).
        tiny: absolute error of a product that underflows.
    """
    tensors = _absolute(network.tensors)
    count = bits.shape[0]
    largest = torch.maximum(low.abs(), high.abs()).double().reshape(1, *network.input_shape)
    sizes: list[Tensor] = []
    errors: list[Tensor] = []
    found_size: list[Tensor] = []
    found_error: list[Tensor] = []
    peak = dust = torch.zeros(count, dtype=torch.float64)
    for number, operation in enumerate(network.operations):
        if operation.kind == "input":
            size = largest.expand(count, *network.input_shape)
            sizes.append(size)
            errors.append(torch.zeros_like(size))
            peak, dust = _largest(size), torch.full((count,), network.atoms + network.inputs + 16.0).double()
            continue
        x, e = [sizes[i] for i in operation.inputs], [errors[i] for i in operation.inputs]
        back = roundings_back(operation, network.tensors) + 1
        for a, b in zip(x, e, strict=True):
            dust = dust + back * (1 + a + b).flatten(1).sum(1)
        if operation.kind in CHOICES:
            chosen = bits[:, network.atom_slices[number]]
            if operation.kind == "relu":
                found_size.append(x[0].flatten(1))
                found_error.append(e[0].flatten(1))
                on, slope = chosen.reshape(x[0].shape), operation.attributes["slope"]
                sizes.append(torch.where(on, x[0], slope * x[0]))
                off = slope * e[0] + unit * slope * (x[0] + e[0]) * 2 + (tiny if slope else 0.0)
                errors.append(torch.where(on, e[0], off))
            else:
                shape = (count, *operation.shape)
                for values, kept, found in ((x[0], sizes, found_size), (e[0], errors, found_error)):
                    spread = windows(operation, values)
                    won = torch.where(chosen.reshape(spread.shape), spread, torch.zeros_like(spread)).sum(-1)
                    both = torch.where(torch.isfinite(spread), spread, torch.zeros_like(spread)) + won.unsqueeze(-1)
                    found.append(both.flatten(1))
                    kept.append(won.reshape(shape))
            continue
        before = network.operations[operation.inputs[0]].shape
        steps = roundings(operation, network.tensors, before)
        size = _sizes(operation, x, tensors, constants=True)
        error = _sizes(operation, e, tensors, constants=False)
        if steps:
            up = _SLACK + 4 * steps * UNIT64  # these are float64 sums themselves
            size, error = size * up, error * up
            lost = _absolute_error(operation, x[0] + e[0], tensors, steps, tiny)
            error = error + gamma(steps, unit) * (size + error) + lost
        sizes.append(size)
        errors.append(error * _SLACK)
        peak = torch.maximum(peak, _peak(operation, x[0] + e[0], size + errors[-1], tensors, before))
    empty = torch.zeros(count, 0, dtype=torch.float64)
    return Rounding(
        margins=torch.cat(found_error, 1) if found_error else empty,
        logits=errors[-1],
        margin_size=torch.cat(found_size, 1) if found_size else empty,
        logit_size=sizes[-1],
        peak=peak,
        dust=4 * TINY64 * dust,
    )
