"""What tracing collects: operations in order, their tensors, and values that depend on the input."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from expunge.core.errors import ModelError

from .operations import Operation


@dataclasses.dataclass(frozen=True)
class Value:
    """A result that depends on the input: the number of its operation."""

    number: int


class Builder:
    """Collects operations; a value of the graph is the number of an operation, or a constant tensor."""

    def __init__(self, names: dict[tuple[int, int], str], where: str) -> None:
        self.operations: list[Operation] = []
        self.tensors: dict[str, Tensor] = {}
        self.names = names
        self.where = where

    def add(self, op: str, inputs: tuple[int, ...], shape: tuple[int, ...], **attributes: Any) -> int:
        """Append an operation without tensors."""
        return self.append(Operation(op, inputs, tuple(shape), attributes))

    def append(self, operation: Operation) -> int:
        """Append an operation; its number."""
        self.operations.append(operation)
        return len(self.operations) - 1

    def name_tensor(self, tensor: Tensor) -> str:
        """Name of a constant tensor: its name in the model where it has one, else `constant.<n>`."""
        tensor = tensor.detach()
        known = self.names.get((tensor.data_ptr(), tensor.numel()))
        if known is not None and tensor.is_contiguous():
            shape = "" if known not in self.tensors or self.tensors[known].shape == tensor.shape else "@reshaped"
            name = known + shape
        else:
            name = f"constant.{sum(n.startswith('constant.') for n in self.tensors)}"
        self.tensors[name] = tensor.to(torch.float32).contiguous().clone()
        return name

    def shape(self, number: int) -> tuple[int, ...]:
        """Shape of one record of an earlier result."""
        return self.operations[number].shape

    def error(self, what: str, hint: str | None = None) -> ModelError:
        """An error that says why the network is refused."""
        return ModelError(what, where=self.where, hint=hint)
