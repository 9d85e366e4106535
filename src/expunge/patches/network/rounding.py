"""Bounds on the difference between executed float32 numbers and the affine forms of a region.

For an input whose executed activation bits equal the pattern, the executed network made exactly the choices of the
pattern, so it evaluated the affine forms of the pattern in float32. Each affine operation with n roundings per result
obeys the running error bound [Higham2002]_, in any order of summation and with or without fused multiply-add:

    |v^ - v| <= |W| e + gamma_n (|W| (M + e) + |b|) + n 2^-126,     gamma_n = n u / (1 - n u),  u = 2^-24

where e is the error and M the magnitude of the inputs over the box. The last term covers products that underflow. It is
larger where such a product is multiplied again (BatchNorm in another order, division by a reciprocal, see
`_underflow_error`). The bound holds if nothing overflows. |W| (M + e) + |b| bounds every partial sum, so by induction
nothing overflows while the largest of these sums, `RoundingBounds.peak`, stays below 2^127. The bound does not hold for
Winograd or FFT convolutions, TF32 or autocast, nor where subnormal numbers are flushed to zero.

.. [Higham2002] Higham: Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from expunge.core.show import repr_fields

from .execute import Tensors, apply, cast, gather_windows
from .operations import CHOICES, Network, Operation

UNIT32 = 2.0**-24
UNIT64 = 2.0**-53
TINY32 = 2.0**-126
TINY64 = 2.0**-1022
#: Executed numbers must stay below this, half of the largest power of two in float32.
OVERFLOW = 2.0**127
#: Roundings allowed for one BatchNorm result, in any order of evaluation.
_BATCH_NORM = 10
_SLACK = 1.0 + 1e-9


def gamma(n: float, unit: float) -> float:
    """Return n u / (1 - n u)."""
    return n * unit / (1 - n * unit)


def count_roundings(operation: Operation, tensors: Tensors, shape: tuple[int, ...]) -> int:
    """Return the number of roundings from the inputs of an operation to one result; `shape`: of its first input."""
    op = operation.op
    if op in ("linear", "conv"):
        return math.prod(tensors[operation.tensors["weight"]].shape[1:]) + 2
    if op == "batch_norm":
        return _BATCH_NORM
    if op == "average_pool":
        return math.prod(operation.attributes["kernel"]) + 2
    if op == "mean":
        return math.prod(shape[axis] for axis in operation.attributes["axes"]) + 2
    if op in ("add_constant", "multiply_constant", "divide_constant", "add"):
        return 2
    return 0


def count_path_roundings(network: Network) -> int:
    """Return the sum of the roundings of all operations, an upper bound for any path from input to output.

    It is not below the count of expunge-check, which allows two more per operation, so a patch that is solved with this
    count passes the checker.
    """
    total = 2 * len(network.operations)
    for operation in network.operations:
        shape = network.operations[operation.inputs[0]].shape if operation.inputs else ()
        total += count_roundings(operation, network.tensors, shape) + 2
    return total


def count_backward_roundings(operation: Operation, tensors: Tensors) -> int:
    """Return the number of roundings of the reverse pass of an operation, where sums run over its results."""
    op = operation.op
    if op == "linear":
        return tensors[operation.tensors["weight"]].shape[0] + 2
    if op == "conv":
        weight = tensors[operation.tensors["weight"]].shape
        return weight[0] // int(operation.attributes["groups"]) * math.prod(weight[2:]) + 2
    if op == "max_pool":
        return 2 * math.prod(operation.attributes["kernel"]) + 2
    return math.prod(operation.attributes["kernel"]) + 2 if op == "average_pool" else 2


def count_evaluation_steps(network: Network) -> int:
    """Return n of the float64 error bound 4 gamma_n: it covers the forward and the reverse pass."""
    shared = network.atoms + network.inputs
    back = sum(count_backward_roundings(operation, network.tensors) + 1 for operation in network.operations[1:])
    return max(count_path_roundings(network) + shared, (back + shared + 8) // 3 + 1)


@dataclasses.dataclass(frozen=True, eq=False)
class RoundingBounds:
    """Bounds on execution over the box, for `B` patterns.

    Attributes:
        margins: `B x L`, float32 error e of each margin; executed bits equal to the pattern imply margin >= -e.
        logits: `B x K`, float32 error of each logit.
        margin_size, logit_size: bounds on the absolute values of margins and logits over the box. They are sums of
            absolute products, so they also bound every intermediate sum.
        peak: `B`, the largest absolute number that may occur in an execution, in any order of evaluation.
        underflow: `B`, how much underflow may change a float64 evaluation of a bound.
    """

    margins: Tensor
    logits: Tensor
    margin_size: Tensor
    logit_size: Tensor
    peak: Tensor
    underflow: Tensor

    __repr__ = repr_fields

    def holds(self, reach: Tensor | float, claim: str) -> Tensor:
        """Return for which patterns the bounds hold: all are finite and executed numbers cannot overflow, `B` bool.

        Args:
            reach: how much the arithmetic of the patches may exceed the numbers of the base network.
            claim: `float32`, or `real` (then there is no execution that could overflow).
        """
        found = (self.peak + reach <= OVERFLOW) if claim == "float32" else torch.ones_like(self.peak, dtype=torch.bool)
        for field in dataclasses.fields(self):
            found = found & torch.isfinite(getattr(self, field.name)).view(len(found), -1).all(1)
        return found


def _take_absolute(tensors: Tensors) -> dict[str, Tensor]:
    return {name: tensor.abs() for name, tensor in cast(tensors, torch.float64).items()}


def _bound_size(operation: Operation, inputs: list[Tensor], tensors: Tensors, *, constants: bool) -> Tensor:
    """Return |W| x + |b| of an affine operation, without |b| if `constants` is false."""
    if operation.op == "batch_norm":
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
        if operation.op == "add_constant":
            return inputs[0].clone()
    plain = Operation(operation.op, operation.inputs, operation.shape, attributes, named)
    return apply(plain, inputs, tensors)


def _underflow_error(operation: Operation, x: Tensor, tensors: Tensors, steps: int, tiny: float) -> Tensor | float:
    """Return how much underflow may change a result.

    Each product may lose `tiny`. In BatchNorm, which may be computed in any order, and in a division by a reciprocal,
    the loss may afterwards be multiplied by another factor of the product.

    Args:
        operation: an affine operation.
        x: sizes of the inputs, their errors included.
        tensors: absolute values.
        steps: roundings per result.
        tiny: absolute error of a product that underflows.
    """
    if operation.op == "batch_norm":
        mean, weight, inverse, _ = _batch_norm(operation, tensors, x.dim())
        return steps * tiny * (1 + x + mean + weight + inverse)
    return steps * tiny * (1 + x) if operation.op == "divide_constant" else steps * tiny


def _batch_norm(operation: Operation, tensors: Tensors, dims: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return mean, weight, 1 / sqrt(variance + epsilon) and bias, shaped for a batch of `dims` axes."""
    names = operation.tensors
    variance = tensors[names["variance"]]
    parts = {
        "mean": tensors[names["mean"]],
        "weight": tensors[names["weight"]] if "weight" in names else torch.ones_like(variance),
        "inverse": 1 / (variance + operation.attributes["epsilon"]).sqrt(),
        "bias": tensors[names["bias"]] if "bias" in names else torch.zeros_like(variance),
    }
    mean, weight, inverse, bias = (part.view(1, -1, *(1,) * (dims - 2)) for part in parts.values())
    return mean, weight, inverse, bias


def _bound_peak(operation: Operation, x: Tensor, y: Tensor, tensors: Tensors, shape: tuple[int, ...]) -> Tensor:
    """Return the largest absolute number that may occur while an affine operation is executed, in any order, `B`.

    Args:
        operation: an affine operation.
        x: sizes of the inputs, their errors included.
        y: sizes of the results, their errors included, which bound every partial sum of products. A mean may be
            divided after it is summed, and BatchNorm may multiply its factors in any order.
        tensors: absolute values.
        shape: of the first input.
    """
    most = _max_per_record(y)
    if operation.op == "batch_norm":
        mean, weight, inverse, bias = _batch_norm(operation, tensors, x.dim())
        whole = (x + mean).clamp(min=1) * weight.clamp(min=1) * inverse.clamp(min=1) + bias.max()
        spread = tensors[operation.tensors["variance"]].max() + operation.attributes["epsilon"]
        return torch.maximum(most, _max_per_record(whole) + spread)
    if operation.op == "divide_constant":
        return torch.maximum(most, (1 / tensors[operation.tensors["value"]]).max())
    if operation.op == "average_pool":
        return most * math.prod(operation.attributes["kernel"])
    return most * math.prod(shape[axis] for axis in operation.attributes["axes"]) if operation.op == "mean" else most


def _max_per_record(x: Tensor) -> Tensor:
    return x.flatten(1).amax(1) if x.numel() else x.new_zeros(len(x))


def bound_claimed_error(network: Network, bits: Tensor, low: Tensor, high: Tensor, claim: str) -> RoundingBounds:
    """Return the error bounds for a claim: of float32 or, for `real`, only of underflow in a float64 evaluation."""
    if claim == "real":
        return bound_execution_error(network, bits, low, high, unit=0.0, tiny=TINY64)
    return bound_execution_error(network, bits, low, high)


def bound_execution_error(
    network: Network, bits: Tensor, low: Tensor, high: Tensor, *, unit: float = UNIT32, tiny: float = TINY32
) -> RoundingBounds:
    """Return error bounds of executed float32 numbers on the regions of `bits` within the box.

    Args:
        network: the operation list.
        bits: patterns, `B x L` bool.
        low: lower bounds of the box.
        high: upper bounds of the box.
        unit: relative error of a rounding (0: only underflow counts).
        tiny: absolute error of a product that underflows.
    """
    tensors = _take_absolute(network.tensors)
    count = bits.shape[0]
    largest = torch.maximum(low.abs(), high.abs()).double().reshape(1, *network.input_shape)
    sizes: list[Tensor] = []
    errors: list[Tensor] = []
    margin_sizes: list[Tensor] = []
    margin_errors: list[Tensor] = []
    peak = underflow = torch.zeros(count, dtype=torch.float64)
    for number, operation in enumerate(network.operations):
        if operation.op == "input":
            size = largest.expand(count, *network.input_shape)
            sizes.append(size)
            errors.append(torch.zeros_like(size))
            peak, underflow = (
                _max_per_record(size),
                torch.full((count,), network.atoms + network.inputs + 16.0).double(),
            )
            continue
        x, e = [sizes[i] for i in operation.inputs], [errors[i] for i in operation.inputs]
        back = count_backward_roundings(operation, network.tensors) + 1
        for a, b in zip(x, e, strict=True):
            underflow = underflow + back * (1 + a + b).flatten(1).sum(1)
        if operation.op in CHOICES:
            chosen = bits[:, network.atom_slices[number]]
            if operation.op == "relu":
                margin_sizes.append(x[0].flatten(1))
                margin_errors.append(e[0].flatten(1))
                on, slope = chosen.reshape(x[0].shape), operation.attributes["slope"]
                sizes.append(torch.where(on, x[0], slope * x[0]))
                off = slope * e[0] + unit * slope * (x[0] + e[0]) * 2 + (tiny if slope else 0.0)
                errors.append(torch.where(on, e[0], off))
            else:
                shape = (count, *operation.shape)
                for values, kept, found in ((x[0], sizes, margin_sizes), (e[0], errors, margin_errors)):
                    spread = gather_windows(operation, values)
                    won = torch.where(chosen.reshape(spread.shape), spread, torch.zeros_like(spread)).sum(-1)
                    both = torch.where(torch.isfinite(spread), spread, torch.zeros_like(spread)) + won.unsqueeze(-1)
                    found.append(both.flatten(1))
                    kept.append(won.reshape(shape))
            continue
        before = network.operations[operation.inputs[0]].shape
        steps = count_roundings(operation, network.tensors, before)
        size = _bound_size(operation, x, tensors, constants=True)
        error = _bound_size(operation, e, tensors, constants=False)
        if steps:
            up = _SLACK + 4 * steps * UNIT64  # sizes and errors are float64 sums themselves
            size, error = size * up, error * up
            lost = _underflow_error(operation, x[0] + e[0], tensors, steps, tiny)
            error = error + gamma(steps, unit) * (size + error) + lost
        sizes.append(size)
        errors.append(error * _SLACK)
        peak = torch.maximum(peak, _bound_peak(operation, x[0] + e[0], size + errors[-1], tensors, before))
    empty = torch.zeros(count, 0, dtype=torch.float64)
    return RoundingBounds(
        margins=torch.cat(margin_errors, 1) if margin_errors else empty,
        logits=errors[-1],
        margin_size=torch.cat(margin_sizes, 1) if margin_sizes else empty,
        logit_size=sizes[-1],
        peak=peak,
        underflow=4 * TINY64 * underflow,
    )
