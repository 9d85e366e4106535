"""Frozen parameters (`requires_grad` off): no method changes them, and a start from which they come is declared."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import nn

from expunge.core.errors import MethodError
from expunge.core.hashing import plain_parameters
from expunge.core.mask import Mask
from expunge.core.trained import Trained, find_running_tensors


def find_frozen(trained: Trained) -> set[str]:
    """Names of the frozen parameters of a model, without those that forward passes change (running statistics)."""
    return find_frozen_parameters(trained.model, trained)


def find_frozen_parameters(model: nn.Module, trained: Trained) -> set[str]:
    """Names of the frozen parameters of another network of the same architecture; see `find_frozen`."""
    frozen = {name for name, parameter in plain_parameters(model).items() if not parameter.requires_grad}
    if not frozen:
        return frozen
    return frozen - set(find_running_tensors(model, trained.provenance.architecture.get("input_shape")))


def differ_where_kept(name: str, a: torch.Tensor, b: torch.Tensor, *masks: Mask | None) -> bool:
    """Whether two tensors of one parameter differ in an entry that all masks keep."""
    a, b = a.detach().cpu(), b.detach().cpu()
    if a.shape != b.shape or a.dtype != b.dtype:
        return True
    different = (a != b) & ~(a.isnan() & b.isnan())
    for mask in masks:
        if mask is not None and name in mask.kept:
            different = different & mask.kept[name]
    return bool(different.any())


def check_frozen(before: Trained, after: Trained, thawed: Collection[str] = ()) -> None:
    """Raise MethodError if a method changed a frozen parameter. Entries that a mask prunes do not count.

    Args:
        before: the original.
        after: the unlearned model.
        thawed: frozen parameters of the original that were trained when it was trained, before they were frozen.
    """
    frozen = find_frozen(before) - set(thawed)
    if not frozen:
        return
    old, new = plain_parameters(before.model), plain_parameters(after.model)
    for name in sorted(frozen & set(new)):
        if differ_where_kept(name, old[name], new[name], before.mask, after.mask):
            raise MethodError(
                "the method changed a frozen parameter (requires_grad is off)",
                where=name,
                hint="turn requires_grad on for what may change, or use a method that only trains",
            )


def is_constant(tensor: torch.Tensor) -> bool:
    """Whether all entries are equal, as in biases of 0 and scales of 1: such a start says nothing."""
    return tensor.numel() == 0 or bool((tensor == tensor.reshape(-1)[0]).all())


def find_equal(
    names: Collection[str], a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor], *masks: Mask | None
) -> list[str]:
    """Names of the parameters that are not constant and equal in both, where all masks keep them."""
    return [
        name
        for name in names
        if name in b and not is_constant(a[name].detach()) and not differ_where_kept(name, a[name], b[name], *masks)
    ]
