"""Traces a torch module into an operation list, from its graph of ATen calls (functional calls included)."""

from __future__ import annotations

import copy
import functools
import math
from typing import Any

import torch
from torch import nn

from expunge.core.errors import ModelError
from expunge.core.hashing import plain_name
from expunge.core.probe import make_probe

from . import lowering
from .builder import Builder, Value
from .execute import cast, compute_atom_values
from .operations import Network

_BATCH = 3
#: In torch's messages, for code that reads the value of a tensor which is traced.
_READS_VALUES = ("get value out of a tracing tensor", "data-dependent", "truth value of a Tensor")


def trace(model: nn.Module, input_shape: tuple[int, ...], *, where: str = "patch") -> Network:
    """Return the operation list of a classifier in evaluation mode. The model is not modified.

    The list is replayed on random inputs and must reproduce the logits of the model: in float64 to 1e-9, or in float32
    to 1e-5 if the code of the model has numbers that float32 cannot represent.

    Args:
        model: maps `N x ...` to `N x K` logits.
        input_shape: shape of one record.
        where: the location named in error messages.

    Raises:
        ModelError: an operation is not piecewise linear or not supported, with the reason; or the list does not
            reproduce the model (for example because its control flow depends on the data).

    Example:
        >>> import torch
        >>> from expunge.patches import trace
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        >>> network = trace(model, (4,))
        >>> [operation.op for operation in network.operations]
        ['input', 'linear', 'relu', 'linear']
        >>> network.inputs, network.atoms, network.classes
        (4, 3, 2)
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    copied = copy.deepcopy(model).to("cpu", torch.float32).eval()
    example = make_probe(model, input_shape, _BATCH, torch.Generator().manual_seed(1))
    try:
        with torch.no_grad():
            graph = make_fx(copied, pre_dispatch=True)(example)
    except Exception as error:
        first = next(iter(str(error).splitlines()), "")
        reason = f"{type(error).__name__}: {first}"
        if any(sign in str(error) for sign in _READS_VALUES):
            reason = "its code reads the value of a tensor: `if` of a tensor, .item(), int()"
        raise ModelError(
            f"the model cannot be traced ({reason})",
            where=where,
            hint="certified patches need a network whose control flow does not depend on the data",
        ) from error
    network = _lower(graph, copied, input_shape, where)
    _check_replay(network, copied, input_shape, where)
    return network


@functools.cache
def load_tracer() -> None:
    """Trace a trivial network, because torch loads its tracer (seconds) at the first trace of a process.

    Call it before the time of a method is measured.
    """
    trace(nn.Linear(1, 1), (1,))


def explain_unsupported(model: nn.Module, input_shape: tuple[int, ...]) -> str | None:
    """Return why a model cannot be patched, in one sentence, or None if it can be.

    Args:
        model: maps `N x ...` to `N x K` logits.
        input_shape: shape of one record.

    Example:
        >>> import torch
        >>> from expunge.patches import explain_unsupported
        >>> explain_unsupported(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.GELU()), (4,))
        'GELU is not piecewise linear, so its regions have no affine form'
        >>> explain_unsupported(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU()), (4,)) is None
        True
    """
    try:
        trace(model, input_shape)
    except ModelError as error:
        return error.what
    return None


def _lower(graph: Any, model: nn.Module, input_shape: tuple[int, ...], where: str) -> Network:
    named = [*model.named_parameters(), *model.named_buffers()]
    builder = Builder({(t.data_ptr(), t.numel()): plain_name(name) for name, t in named if t.numel()}, where)
    values: dict[Any, Any] = {}

    def value(argument: Any) -> Any:
        if isinstance(argument, torch.fx.Node):
            return values[argument]
        if isinstance(argument, (list, tuple)):
            return type(argument)(value(item) for item in argument)
        return argument

    for node in graph.graph.nodes:
        if node.op == "placeholder":
            values[node] = Value(builder.add("input", (), tuple(input_shape)))
        elif node.op == "get_attr":
            found = graph
            for part in str(node.target).split("."):
                found = getattr(found, part)
            values[node] = found
        elif node.op == "output":
            result = value(node.args[0])
            result = result[0] if isinstance(result, (list, tuple)) and len(result) == 1 else result
            if not isinstance(result, Value) or len(builder.shape(result.number)) != 1:
                raise builder.error("the model does not return one tensor of N x K logits that depends on the input")
            classes = builder.shape(result.number)[0]
            operations = builder.operations[: result.number + 1]
            used = {name for operation in operations for name in operation.tensors.values()}
            tensors = {name: tensor for name, tensor in builder.tensors.items() if name in used}
            return Network(tuple(operations), tensors, tuple(input_shape), classes)
        else:
            arguments = [value(a) for a in node.args]
            keywords = {k: value(v) for k, v in node.kwargs.items()}
            values[node] = lowering.lower(builder, node.target, arguments, keywords)
    raise AssertionError("a graph without output")


def _check_replay(network: Network, model: nn.Module, input_shape: tuple[int, ...], where: str) -> None:
    """Raise unless the list reproduces the logits of the model, in float64 or in float32.

    Numbers in the code of the model are stored as the float32 numbers that are executed, so float64 may differ.
    """
    example = torch.randn(_BATCH + 2, *input_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        x = example.to(dtype)
        with torch.no_grad():
            expected = copy.deepcopy(model).to(dtype)(x)
            found, _ = compute_atom_values(network, x, cast(network.tensors, dtype))
        scale = max(1.0, float(expected.abs().max()))
        matches = expected.shape == found.shape and math.isfinite(scale)
        if matches and float((expected - found).abs().max()) <= tolerance * scale:
            return
    raise ModelError(
        "the traced operation list does not reproduce the model's logits",
        where=where,
        hint="control flow that depends on the data or on the batch size cannot be traced",
    )
