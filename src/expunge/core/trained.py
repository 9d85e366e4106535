"""A trained model together with all that training left behind."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .hashing import hash_tensors, plain_names
from .mask import Mask
from .split import Split

#: Influence-bearing state: whatever of a trained model depends on the records it was trained on.
INFLUENCE_STATE: dict[str, str] = {
    "weights": "the parameters",
    "batch_norm": "running means and variances of BatchNorm layers",
    "mask": "which weights are alive",
    "pruning_scores": "the scores that ranked the weights when the mask was made",
    "pruning_weights": "all tensors at the moment when the pruning scores were taken",
    "rewind_checkpoint": "early weights, kept for rewinding",
    "optimiser_moments": "momentum and second moments of the optimiser",
    "patches": "certified patches and the activation patterns in them",
    "normalisation": "input means and deviations computed from training records",
}


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Where a trained model came from; JSON values only.

    Attributes:
        architecture: `expunge.models.Architecture.to_json()`: `{"name", "options", "input_shape", "classes", ..}`;
            the name is a registered one or a user's `package.module:function`.
        data: `{"name", "hash"}` of the records.
        recipe: the training recipe as a dictionary (`expunge.training.Recipe`); empty where unknown.
        seeds: seeds by purpose; `initial` regenerates the initial weights, `order` the order of records.
        weights_from: `training`, or the hash of a weights file that came from elsewhere.
        history: one line a stage: what was done to the model, in order.
        initial_weights: hash of the parameters that training started from; empty where unknown.
    """

    architecture: Mapping[str, Any]
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seeds: Mapping[str, int] = dataclasses.field(default_factory=dict)
    weights_from: str = "training"
    history: tuple[str, ...] = ()
    initial_weights: str = ""

    def then(self, line: str) -> Provenance:
        """The provenance with one more line of history."""
        return dataclasses.replace(self, history=(*self.history, line))

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "history": list(self.history)}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Provenance:
        known = {f.name for f in dataclasses.fields(cls)}
        values = {k: v for k, v in body.items() if k in known}
        return cls(**{**values, "history": tuple(values.get("history", ()))})


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """A trained model, its mask, its split, where it came from, and the state that methods need.

    Attributes:
        model: the network; it takes `N x ...` float32 inputs and returns `N x K` logits. Never modified in place.
        mask: which weights are alive, or None for a dense model.
        split: which records it was trained on (retain + forget) and which it never saw.
        provenance: recipe, seeds, architecture, data.
        state: tensors that training left behind, by kind: `rewind_checkpoint`, `pruning_scores`, or a method's own.
    """

    model: nn.Module
    mask: Mask | None
    split: Split
    provenance: Provenance
    state: Mapping[str, Mapping[str, torch.Tensor]] = dataclasses.field(default_factory=dict)

    @property
    def hash(self) -> str:
        """Hash of weights and buffers."""
        return hash_tensors(plain_state(self.model))

    def influence_state(self) -> tuple[str, ...]:
        """The kinds of influence-bearing state that this trained model has (keys of `INFLUENCE_STATE`)."""
        present = ["weights"]
        if any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats for m in self.model.modules()):
            present.append("batch_norm")
        if self.mask is not None:
            present.append("mask")
        if self.provenance.architecture.get("normalisation_from") == "training records":
            present.append("normalisation")
        present.extend(name for name in INFLUENCE_STATE if name in self.state)
        return tuple(name for name in INFLUENCE_STATE if name in present)


def plain_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict under plain names (no DDP, Fabric or compile prefixes).

    Raises:
        ModelError: two names become one without their prefixes.
    """
    return plain_names(model.state_dict())


def clone_model(model: nn.Module) -> nn.Module:
    """A deep copy that shares nothing with the caller's model and carries no gradients."""
    twin = copy.deepcopy(model)
    for parameter in twin.parameters():
        parameter.grad = None
    return twin
