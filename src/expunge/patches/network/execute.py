"""Execution of an operation list in torch: of the network itself, and of its affine form on a region, batched.

The affine operations call the same torch functions as the traced model, on the same tensors, so that float32 results
are bit for bit the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .operations import CHOICES, Network, Operation, map_windows, reaches_padding

Tensors = Mapping[str, Tensor]
Choice = Callable[[int, Operation, Tensor], Tensor]


def apply(operation: Operation, inputs: list[Tensor], tensors: Tensors) -> Tensor:
    """Return the result of an affine operation. `tensors` have the dtype of the inputs."""
    op, attributes, x = operation.op, operation.attributes, inputs[0]

    def get(role: str) -> Tensor | None:
        name = operation.tensors.get(role)
        return None if name is None else tensors[name]

    if op == "linear":
        return functional.linear(x, tensors[operation.tensors["weight"]], get("bias"))
    if op == "conv":
        function = (functional.conv1d, functional.conv2d)[len(attributes["stride"]) - 1]
        weight = tensors[operation.tensors["weight"]]
        arguments = [list(attributes[name]) for name in ("stride", "padding", "dilation")]
        return function(x, weight, get("bias"), arguments[0], arguments[1], arguments[2], attributes["groups"])
    if op == "batch_norm":
        return functional.batch_norm(
            x, get("mean"), get("variance"), get("weight"), get("bias"), False, 0.0, attributes["epsilon"]
        )
    if op == "add_constant":
        value = tensors[operation.tensors["value"]]
        return x - value if attributes["sign"] < 0 else x + value
    if op == "multiply_constant":
        return x * tensors[operation.tensors["value"]]
    if op == "divide_constant":
        return x / tensors[operation.tensors["value"]]
    if op == "add":
        return x - inputs[1] if attributes["sign"] < 0 else x + inputs[1]
    if op == "concat":
        return torch.cat(inputs, dim=attributes["axis"] + 1)
    return _apply_arrangement(operation, x)


def _apply_arrangement(operation: Operation, x: Tensor) -> Tensor:
    op, attributes = operation.op, operation.attributes
    if op == "average_pool":
        arguments = [list(attributes[name]) for name in ("kernel", "stride", "padding")]
        padded = attributes["count_padding"]
        if attributes[
            "adaptive"
        ]:  # torch divides by the height, then by the width; one division would round differently
            pool: Any = (functional.adaptive_avg_pool1d, functional.adaptive_avg_pool2d)[len(arguments[0]) - 1]
            result: Tensor = pool(x, operation.shape[1:])
            return result
        if len(arguments[0]) == 1:
            return functional.avg_pool1d(x, arguments[0], arguments[1], arguments[2], False, padded)
        return functional.avg_pool2d(x, arguments[0], arguments[1], arguments[2], False, padded)
    if op == "mean":
        return x.mean(dim=[axis + 1 for axis in attributes["axes"]], keepdim=attributes["keep"])
    if op == "reshape":
        return x.reshape(x.shape[0], *operation.shape)
    if op == "permute":
        return x.permute(0, *(axis + 1 for axis in attributes["axes"]))
    if op == "slice":
        index = [slice(None)] * x.dim()
        index[attributes["axis"] + 1] = slice(attributes["start"], attributes["stop"], attributes["step"])
        return x[tuple(index)]
    if op == "pad":
        return functional.pad(x, list(attributes["pairs"]), value=float(attributes["value"]))
    raise AssertionError(f"no such operation: {op}")


def gather_windows(operation: Operation, x: Tensor) -> Tensor:
    """Return the values in the windows of a max pool, `B x C x n_out x k`; -inf on padding."""
    plane = tuple(x.shape[2:])
    places = map_windows(plane, operation.attributes, operation.shape[1:]).to(x.device)
    flat = x.flatten(2)
    if reaches_padding(plane, operation.attributes, operation.shape[1:]):
        flat = functional.pad(flat, (0, 1), value=float("-inf"))
        places = torch.where(places < 0, flat.shape[2] - 1, places)
    return flat[:, :, places]


def run(network: Network, x: Tensor, tensors: Tensors, choose: Choice) -> Tensor:
    """Return the logits `B x K` of `x`, `B x ...`; `choose(number, operation, value)` computes relu and max_pool."""
    values: list[Tensor] = []
    for number, operation in enumerate(network.operations):
        if operation.op == "input":
            values.append(x)
        elif operation.op in CHOICES:
            values.append(choose(number, operation, values[operation.inputs[0]]))
        else:
            values.append(apply(operation, [values[i] for i in operation.inputs], tensors))
    return values[-1]


def check_shapes(network: Network) -> None:
    """Execute the list on two records of zeros and compare the shape of every result with the recorded one.

    Raises:
        ValueError: a shape is another one.
    """
    values: list[Tensor] = []
    for number, operation in enumerate(network.operations):
        inputs = [values[i] for i in operation.inputs]
        if operation.op == "input":
            value = torch.zeros(2, *network.input_shape)
        elif operation.op in CHOICES:
            value = choose_by_value(operation, inputs[0])[0]
        else:
            value = apply(operation, inputs, network.tensors)
        if value.shape != (2, *operation.shape):
            raise ValueError(f"operation {number} yields {tuple(value.shape[1:])}, not the recorded {operation.shape}")
        values.append(value)


def choose_by_value(operation: Operation, x: Tensor) -> tuple[Tensor, Tensor]:
    """Execute relu or max_pool as the network does.

    Returns:
        the result, and the values of the atoms `B x n` (relu: pre-activations z; max pool: window values).
    """
    if operation.op == "relu":
        slope = operation.attributes["slope"]
        y = torch.relu(x) if slope == 0 else functional.leaky_relu(x, slope)
        return y, x.flatten(1)
    windows = gather_windows(operation, x)
    return windows.amax(-1).reshape(x.shape[0], *operation.shape), windows.flatten(1)


def compute_bits(operation: Operation, values: Tensor) -> Tensor:
    """Return activation bits `B x n`: z > 0 for a relu; for a max pool, 1 at the first position of the maximum."""
    if operation.op == "relu":
        return _positive(values)
    windows = values.unflatten(1, (-1, _width(operation)))
    top = windows == windows.amax(-1, keepdim=True)
    return (top & (top.cumsum(-1) == 1)).flatten(1)


def _positive(values: Tensor) -> Tensor:
    """Return values > 0. On a CPU, a comparison into float32 and a cast to bool take half the time of a direct `>`."""
    if values.device.type != "cpu" or torch.compiler.is_compiling():
        return values > 0
    values = values.detach()
    return torch.gt(values, 0, out=torch.empty_like(values)).bool()


def _width(operation: Operation) -> int:
    width = 1
    for extent in operation.attributes["kernel"]:
        width *= int(extent)
    return width


class Region:
    """The affine forms of a network on the regions of `B` patterns, batched.

    On the region of a pattern every relu and max pool is fixed by its bits, so the logits and the margins of the atoms
    are affine in the input. The margin of a relu unit is s z, with s = +1 for bit 1 and -1 for bit 0. The margin of a
    max-pool position is the value of the winner minus the value at the position (0 for the winner and for padding).
    The closed region is the set of inputs where all margins are >= 0.

    Args:
        network: the operation list.
        bits: patterns, `B x L` bool.
        tensors: the tensors of the list, in the dtype of the computation.
    """

    def __init__(self, network: Network, bits: Tensor, tensors: Tensors) -> None:
        self.network, self.bits, self.tensors = network, bits, tensors

    def __call__(self, x: Tensor, *, margins: bool = True) -> tuple[Tensor, Tensor]:
        """Return logits `B x K` and margins `B x L` of the affine forms at any `x`, `B x ...`."""
        collected: list[Tensor] = []

        def choose(number: int, operation: Operation, value: Tensor) -> Tensor:
            bits = self.bits[:, self.network.atom_slices[number]]
            if operation.op == "relu":
                if margins:
                    flat = value.flatten(1)
                    collected.append(torch.where(bits, flat, -flat))
                slope = operation.attributes["slope"]
                return torch.where(bits.reshape(value.shape), value, value * slope)
            windows, won = self._pool(operation, value, bits)
            if margins:
                gap = won.unsqueeze(-1) - windows
                collected.append(torch.where(torch.isfinite(windows), gap, torch.zeros_like(gap)).flatten(1))
            return won.reshape(value.shape[0], *operation.shape)

        logits = run(self.network, x, self.tensors, choose)
        return logits, _concatenate(collected, x)

    @staticmethod
    def _pool(operation: Operation, value: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
        windows = gather_windows(operation, value)
        chosen = bits.reshape(windows.shape)
        return windows, torch.where(chosen, windows, torch.zeros_like(windows)).sum(-1)


def compute_atom_values(network: Network, x: Tensor, tensors: Tensors) -> tuple[Tensor, Tensor]:
    """Return logits `B x K` and the values of the atoms `B x L` of the network itself."""
    collected: list[Tensor] = []

    def choose(_: int, operation: Operation, value: Tensor) -> Tensor:
        result, atoms = choose_by_value(operation, value)
        collected.append(atoms)
        return result

    logits = run(network, x, tensors, choose)
    return logits, _concatenate(collected, x)


def _concatenate(parts: list[Tensor], x: Tensor) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    return torch.cat(parts, 1) if parts else x.new_zeros(x.shape[0], 0)


def execute_pattern(network: Network, x: Tensor, tensors: Tensors) -> tuple[Tensor, Tensor]:
    """Return logits `B x K` and the executed activation pattern `B x L` bool."""
    logits, values = compute_atom_values(network, x, tensors)
    return logits, split_bits(network, values)


def split_bits(network: Network, values: Tensor) -> Tensor:
    """Return activation bits `B x L` of the values of all atoms `B x L`."""
    parts = [compute_bits(network.operations[n], values[:, place]) for n, place in network.atom_slices.items()]
    if len(parts) == 1:
        return parts[0]
    return torch.cat(parts, 1) if parts else torch.zeros(values.shape[0], 0, dtype=torch.bool, device=values.device)


def cast(tensors: Tensors, dtype: torch.dtype, device: Any = None) -> dict[str, Tensor]:
    """Return the tensors in another dtype, and on another device if given."""
    return {name: tensor.detach().to(device=device, dtype=dtype) for name, tensor in tensors.items()}
