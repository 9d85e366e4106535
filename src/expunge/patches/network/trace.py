"""From a torch module to an operation list: the traced graph of ATen calls, functional calls included."""

from __future__ import annotations

import copy
import functools
import math
from typing import Any

import torch
from torch import nn

from expunge.core.errors import ModelError
from expunge.core.hashing import plain_name

from . import lowering
from .builder import Builder, Value
from .execute import cast, compute_atom_values
from .operations import Network

_BATCH = 3


def trace(model: nn.Module, input_shape: tuple[int, ...], *, where: str = "patch") -> Network:
    """The operation list of a classifier in evaluation mode; the model itself is not touched.

    The traced list is replayed on random inputs and must agree with the model: in float64 to 1e-9 or, where numbers in
    the model's code are none of float32, in float32 to 1e-5.

    Args:
        model: maps `N x ...` to `N x K` logits.
        input_shape: shape of one record.
        where: named in error messages.

    Raises:
        ModelError: an operation is not piecewise linear or not supported, with the reason; or the list does not
            reproduce the model (control flow that depends on data, say).
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    twin = copy.deepcopy(model).to("cpu", torch.float32).eval()
    example = torch.rand(_BATCH, *input_shape, generator=torch.Generator().manual_seed(1))
    try:
        with torch.no_grad():
            graph = make_fx(twin, pre_dispatch=True)(example)
    except Exception as error:
        raise ModelError(
            f"the model cannot be traced ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})",
            where=where,
            hint="certified patches need a network whose control flow does not depend on the data",
        ) from error
    network = _lower(graph, twin, input_shape, where)
    _check_replay(network, twin, input_shape, where)
    return network


@functools.cache
def load_tracer() -> None:
    """Trace a trivial network: torch loads its tracer (seconds) at the first trace of a process.

    Who measures the time of a method calls this before the clock starts.
    """
    trace(nn.Linear(1, 1), (1,))


def explain_unsupported(model: nn.Module, input_shape: tuple[int, ...]) -> str | None:
    """Why a model cannot be patched, in one sentence, or None where it can (for `expunge check`)."""
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
    """Raise unless the list gives the model's logits, in float64 or in float32.

    Numbers in the model's code are stored as the float32 that they are executed as, so the former may differ.
    """
    example = torch.randn(_BATCH + 2, *input_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        x = example.to(dtype)
        with torch.no_grad():
            wanted = copy.deepcopy(model).to(dtype)(x)
            found, _ = compute_atom_values(network, x, cast(network.tensors, dtype))
        scale = max(1.0, float(wanted.abs().max()))
        alike = wanted.shape == found.shape and math.isfinite(scale)
        if alike and float((wanted - found).abs().max()) <= tolerance * scale:
            return
    raise ModelError(
        "the traced operation list does not reproduce the model's logits",
        where=where,
        hint="control flow that depends on the data or on the batch size cannot be traced",
    )
