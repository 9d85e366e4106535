"""Collects the operations and constant tensors of a trace."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import torch
from torch import Tensor

from expunge.core.errors import ModelError

from .operations import Operation

#: Names of tensors that the format network.json allows.
TENSOR_NAME = re.compile(r"[A-Za-z0-9_.@/-]{1,200}")


@dataclasses.dataclass(frozen=True)
class Value:
    """A result that depends on the input, as the number of its operation."""

    number: int


class Builder:
    """Collects operations and tensors. A value of the graph is a `Value` or a constant tensor."""

    def __init__(self, names: dict[tuple[int, int], str], where: str) -> None:
        self.operations: list[Operation] = []
        self.tensors: dict[str, Tensor] = {}
        self.names = names
        self.where = where

    def add(self, op: str, inputs: tuple[int, ...], shape: tuple[int, ...], **attributes: Any) -> int:
        """Append an operation without tensors and return its number."""
        return self.append(Operation(op, inputs, tuple(shape), attributes))

    def append(self, operation: Operation) -> int:
        """Append an operation and return its number."""
        self.operations.append(operation)
        return len(self.operations) - 1

    def name_tensor(self, tensor: Tensor) -> str:
        """Store a constant tensor and return its name.

        That is its name in the model if `TENSOR_NAME` matches it and no other tensor has it, or else `constant.<n>`.
        """
        tensor = tensor.detach()
        held = tensor.to(torch.float32).contiguous().clone()
        known = self.names.get((tensor.data_ptr(), tensor.numel()))
        names = [known, f"{known}@reshaped"] if known is not None and tensor.is_contiguous() else []
        for name in names:
            if TENSOR_NAME.fullmatch(name) and (name not in self.tensors or torch.equal(self.tensors[name], held)):
                break
        else:
            number = sum(n.startswith("constant.") for n in self.tensors)
            while f"constant.{number}" in self.tensors:
                number += 1
            name = f"constant.{number}"
        self.tensors[name] = held
        return name

    def shape(self, number: int) -> tuple[int, ...]:
        """Return the shape of an earlier result for one record (no batch axis)."""
        return self.operations[number].shape

    def error(self, what: str, hint: str | None = None) -> ModelError:
        """Return the error for a network that is not supported."""
        return ModelError(what, where=self.where, hint=hint)
