"""The size of a reference architecture, counted without building it, since imported options may request any size."""

from __future__ import annotations

import contextlib
import functools
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from expunge.core.errors import ModelError
from expunge.core.reading.limits import ACTIVATIONS, LAYER_SIZE, PARAMETERS, WORK

from .call import ModelCall

#: Built-in networks with up to this many numbers are run to count their multiply-adds, up to this many of those. For
#: larger ones the meta device is used, for which torch imports its compiler: that takes a second.
_RUN_NUMBERS, _RUN_WORK = 2**25, 2**30
_BUILT_IN = "expunge.models.architectures."
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
#: Errors that torch raises for impossible sizes and options; checks of the network itself raise ExpungeError.
_IMPOSSIBLE = (RuntimeError, OverflowError, MemoryError, TypeError, ValueError)


class _WithoutValues(TorchFunctionMode):
    """Skips functions that fill a tensor in place: on the meta device there are no values."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name.endswith("_") and not name.endswith("__"):
            target = args[0] if args else (kwargs or {}).get("tensor")
            if isinstance(target, torch.Tensor):
                return target
        return func(*args, **(kwargs or {}))


def check_size(
    name: str,
    network: type[nn.Module],
    options: Mapping[str, Any],
    input_shape: tuple[int, ...],
    classes: int,
    call: ModelCall | None = None,
) -> None:
    """Count the numbers in a network, in its largest activation, and its multiply-adds, before building it.

    The network is made on torch's meta device, where tensors have shapes but no memory. `check_positive_ints` limits
    lists of sizes and depths before a network loops over them.

    Raises:
        ModelError: the counts are above the limits.
        ExpungeError: raised by the network itself for its options.
    """
    where = f"model {name}"
    sizes = (*input_shape, classes)
    if len(sizes) > 8 or max(sizes) > LAYER_SIZE:
        raise ModelError(f"records of shape {str(input_shape)[:80]} and {str(classes)[:30]} classes", where=where,
                         hint=f"at most 7 dimensions, and {LAYER_SIZE} in each")  # fmt: skip
    try:
        count: Callable[..., tuple[int, int]] = _count_numbers
        work: Callable[..., int] = _count_work
        arguments = (network, json.dumps(options, sort_keys=True), input_shape, classes)
        parameters, activation = count(*arguments)
    except _IMPOSSIBLE as error:
        what = str(error).partition("\n")[0][:200]
        raise ModelError(f"a network of these sizes cannot be built ({what})", where=where) from error
    PARAMETERS.check(parameters, "the network has", where=where, error=ModelError)
    ACTIVATIONS.check(activation, "for one record, a layer returns", where=where, error=ModelError)
    try:
        steps = work(*arguments, call)
    except _IMPOSSIBLE as error:
        what = str(error).partition("\n")[0][:200]
        raise ModelError(f"a network of these sizes cannot take such a record ({what})", where=where) from error
    WORK.check(steps, "one forward pass of one record takes", where=where, error=ModelError)


def _make_without_values(
    network: type[nn.Module], options: str, input_shape: tuple[int, ...], classes: int, device: str = "meta"
) -> nn.Module:
    keywords = {key: tuple(v) if isinstance(v, list) else v for key, v in json.loads(options).items()}
    with torch.device(device), _WithoutValues():
        return network(input_shape, classes, nn.Identity(), **keywords)


class _TooMuchWork(Exception):
    """The network takes more multiply-adds than are run."""


@functools.lru_cache(maxsize=256)
def _count_work(
    network: type[nn.Module], options: str, input_shape: tuple[int, ...], classes: int, call: ModelCall | None = None
) -> int:
    """Count the multiply-adds of convolutions and linear layers, and the outputs of the others, for one record."""
    count: Callable[..., tuple[int, int]] = _count_numbers
    numbers = sum(count(network, options, input_shape, classes))
    more = () if call is None else (call,)
    if network.__module__.startswith(_BUILT_IN) and numbers <= _RUN_NUMBERS:
        with contextlib.suppress(_TooMuchWork):
            return _pass_one_record(network, options, input_shape, classes, "cpu", *more)
    return _pass_one_record(network, options, input_shape, classes, "meta", *more)


def _pass_one_record(
    network: type[nn.Module],
    options: str,
    input_shape: tuple[int, ...],
    classes: int,
    device: str,
    call: ModelCall | None = None,
) -> int:
    made = _make_without_values(network, options, input_shape, classes, device).eval()
    total = 0

    def stop(module: nn.Module, inputs: tuple[object, ...]) -> None:
        x = inputs[0]
        assert isinstance(x, torch.Tensor)
        if total + _bound_work(module, x) > _RUN_WORK:
            raise _TooMuchWork

    def add(module: nn.Module, _: object, output: object) -> None:
        nonlocal total
        if not isinstance(output, torch.Tensor):
            return
        if isinstance(module, _CONVOLUTIONS):
            total += output.numel() * math.prod(module.weight.shape[1:])
        else:
            total += output.numel() * (module.in_features if isinstance(module, nn.Linear) else 1)

    for module in made.modules():
        module.register_forward_hook(add)
        if device == "cpu" and isinstance(module, (*_CONVOLUTIONS, nn.Linear)):
            module.register_forward_pre_hook(stop)
    with torch.no_grad(), torch.device(device):
        for tensor in (*made.parameters(), *made.buffers()):
            tensor.zero_()
        if call is None or call.fields is None:
            made(torch.zeros(1, *input_shape))
        else:
            positional, named = call.arguments(call.fields.probe(1).to(device))
            made(*positional, **named)
    return total


def _bound_work(module: nn.Module, x: torch.Tensor) -> float:
    """An upper bound of the multiply-adds of a convolution (padded, with stride 1) or a linear layer."""
    weights = sum(parameter.numel() for parameter in module.parameters())
    if isinstance(module, nn.Linear):
        return x.numel() // module.in_features * weights
    assert isinstance(module, _CONVOLUTIONS)
    if isinstance(module.padding, str):
        return math.inf
    sizes = x.shape[-len(module.padding) :]
    return math.prod(size + 2 * pad for size, pad in zip(sizes, module.padding, strict=True)) * weights


@functools.lru_cache(maxsize=256)
def _count_numbers(
    network: type[nn.Module], options: str, input_shape: tuple[int, ...], classes: int
) -> tuple[int, int]:
    """Count parameters and buffers, and the numbers in the largest activation if no layer reduced the input."""
    made = _make_without_values(network, options, input_shape, classes)
    parameters = sum(tensor.numel() for tensor in (*made.parameters(), *made.buffers()))
    pixels = 1
    for size in input_shape[1:]:
        pixels *= size
    widest = pixels * input_shape[0]
    for module in made.modules():
        if isinstance(module, _CONVOLUTIONS):
            shrunk = 1
            for stride in module.stride:
                shrunk *= int(stride)
            widest = max(widest, module.out_channels * pixels // shrunk)
        elif isinstance(module, nn.Linear):
            widest = max(widest, module.out_features)
    return parameters, widest
