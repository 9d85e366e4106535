"""The original's initial weights, and regrowing weights with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from expunge.core.errors import MethodError
from expunge.core.hashing import hash_tensors, plain_parameters
from expunge.core.mask import Mask
from expunge.core.trained import Trained, clone_model
from expunge.models import Architecture

#: Where the initial weights of a model that was trained elsewhere can come from.
RECORD_HINT = "record the training (expunge.bridges), which stores its initial weights: adopt(..., recorded=FOLDER)"


def build_initial_network(
    trained: Trained,
    expected: str = "",
    *,
    where: str = "Un-prune.initial",
    hint: str = f"use initial=random; or {RECORD_HINT}",
) -> nn.Module:
    """Build the network with the original's initial weights, from the stored copy or from the recorded seed.

    Args:
        trained: the original.
        expected: expected hash of the weights, instead of the recorded one.
        where: the option that needs them, for the error.
        hint: what to do if they are not available.

    Raises:
        MethodError: neither copy nor seed is available, or the hash does not match.
    """
    provenance = trained.provenance
    architecture = Architecture.from_json(provenance.architecture)
    stored = trained.state.get("initial_weights")
    if stored is None and "initial" not in provenance.seeds:
        raise MethodError(
            "neither the original's initial weights nor their seed is available",
            where=where,
            hint=hint,
        )
    model = architecture.build(provenance.seeds.get("initial", 0))
    if stored is not None:
        for name, parameter in plain_parameters(model).items():
            if name not in stored or stored[name].shape != parameter.shape:
                where = f"initial_weights: {name}"
                raise MethodError("this tensor is missing in the stored initial weights", where=where)
            parameter.data.copy_(stored[name])
    is_given, expected = bool(expected), expected or provenance.initial_weights
    found = hash_tensors(dict(model.named_parameters()))
    if expected and found != expected:
        raise MethodError(
            "the initial weights do not have the hash that "
            + ("was given" if is_given else "was recorded when training began"),
            where=f"expected {expected[:12]}, found {found[:12]}",
            hint="another release of torch may draw other numbers; store a copy in the state `initial_weights`",
        )
    return model


def copy_parameters(model: nn.Module, names: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Copy the parameters with the given names to the CPU."""
    parameters = plain_parameters(model)
    return {name: parameters[name].detach().cpu().clone() for name in names}


def regrow(model: nn.Module, before: Mask, after: Mask, values: Mapping[str, torch.Tensor]) -> nn.Module:
    """Copy the model, and set the weights that `after` regrows to the given values.

    Args:
        model: the network; it is not modified.
        before: its mask.
        after: the mask with regrown weights.
        values: the values of regrown weights, by name.
    """
    copy = clone_model(model)
    parameters = plain_parameters(copy)
    with torch.no_grad():
        for name, kept in after.kept.items():
            is_regrown = kept & ~before.kept.get(name, torch.ones_like(kept))
            parameters[name][is_regrown] = values[name][is_regrown]
    return copy
