"""The original's initial weights, and weights that live again with them."""

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


def original_weights(trained: Trained, expected: str = "") -> nn.Module:
    """The network with the original's initial weights: the stored copy, or regenerated from the recorded seed.

    Args:
        trained: the original.
        expected: hash that the weights must have, in the place of the recorded one.

    Raises:
        MethodError: neither is there, or the hash does not match.
    """
    provenance = trained.provenance
    blueprint = Architecture.from_json(provenance.architecture)
    stored = trained.state.get("initial_weights")
    if stored is None and "initial" not in provenance.seeds:
        raise MethodError(
            "neither the original's initial weights nor their seed are there",
            where="Un-prune.initial",
            hint="store them in the state `initial_weights`, or use initial=random or zero",
        )
    model = blueprint.build(provenance.seeds.get("initial", 0))
    if stored is not None:
        for name, parameter in plain_parameters(model).items():
            if name not in stored or stored[name].shape != parameter.shape:
                raise MethodError("the stored initial weights lack this tensor", where=f"initial_weights: {name}")
            parameter.data.copy_(stored[name])
    asked, expected = bool(expected), expected or provenance.initial_weights
    found = hash_tensors(dict(model.named_parameters()))
    if expected and found != expected:
        raise MethodError(
            "the initial weights do not have the hash that "
            + ("was given" if asked else "was recorded when training began"),
            where=f"expected {expected[:12]}, found {found[:12]}",
            hint="another release of torch may draw other numbers: store a copy in the state `initial_weights`",
        )
    return model


def named(model: nn.Module, names: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Copies of the named parameters, on the CPU."""
    parameters = plain_parameters(model)
    return {name: parameters[name].detach().cpu().clone() for name in names}


def revived(model: nn.Module, before: Mask, after: Mask, values: Mapping[str, torch.Tensor]) -> nn.Module:
    """A copy of the model in which weights that `after` revives have the given values."""
    twin = clone_model(model)
    parameters = plain_parameters(twin)
    with torch.no_grad():
        for name, alive in after.alive.items():
            old = before.alive.get(name, torch.ones_like(alive))
            born = alive & ~old
            parameters[name][born] = values[name][born]
    return twin
