"""Gradients of single records of any network: `torch.func`, and a loop over records where that refuses."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from expunge.core.hashing import plain_name

from .vectors import Vector


def generic_gradients(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], x: torch.Tensor, starts: torch.Tensor
) -> Vector:
    """Compute the gradients of single records by `torch.func`, or record by record where `vmap` refuses.

    Cost: a forward pass and C backward passes. Memory: C times B times the parameters, for the result, and the
    activations of all records and columns.

    Args:
        model: the network, in evaluation mode.
        parameters: what to differentiate with respect to, by plain name.
        x: `B x ...` inputs.
        starts: `B x C x K`, the derivatives of C numbers per record by its logits.

    Returns:
        `B x C x shape` for each parameter.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    chosen = {names[parameter]: parameter.detach() for parameter in parameters.values()}

    def outputs(values: Mapping[str, torch.Tensor], record: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = functional_call(model, dict(values), (record[None],))[0]
        return logits

    def one(record: torch.Tensor, columns: torch.Tensor) -> Mapping[str, torch.Tensor]:
        pull_back = torch.func.vjp(lambda values: outputs(values, record), chosen)[1]
        found: Mapping[str, torch.Tensor] = torch.func.vmap(pull_back)(columns)[0]
        return found

    try:
        with sdpa_kernel(SDPBackend.MATH):  # the other kernels of attention have no rule for vmap
            gradients = torch.func.vmap(one)(x, starts)
    except (RuntimeError, ValueError):  # NotImplementedError is a RuntimeError
        return record_by_record(model, parameters, x, starts)
    return {plain_name(name): tensor.detach() for name, tensor in gradients.items()}


def record_by_record(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], x: torch.Tensor, starts: torch.Tensor
) -> Vector:
    """The same as `generic_gradients`, with one forward pass for each record and one backward pass for each column."""
    found = {name: starts.new_zeros(*starts.shape[:2], *p.shape) for name, p in parameters.items()}
    with torch.enable_grad():
        for record in range(len(x)):
            logits = model(x[record : record + 1])
            for column in range(starts.shape[1]):
                start = starts[record, column][None].to(logits.dtype)
                parts = torch.autograd.grad(
                    logits, list(parameters.values()), start, retain_graph=True, allow_unused=True
                )
                for name, part in zip(parameters, parts, strict=True):
                    if part is not None:
                        found[name][record, column] = part
    return found
