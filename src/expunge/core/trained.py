"""A trained model together with the state that training left: mask, split, provenance and stored tensors."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .hashing import hash_tensors, plain_names
from .mask import Mask
from .show import Bar, Summary, plural, repr_fields, repr_html, repr_text, shorten, shorten_names, show_shape
from .split import Split

#: Influence-bearing state: the parts of a trained model that depend on its training records.
INFLUENCE_STATE: dict[str, str] = {
    "weights": "the parameters",
    "batch_norm": "running means and variances of BatchNorm layers",
    "mask": "which weights are kept",
    "pruning_scores": "the scores that ranked the weights when the mask was made",
    "pruning_weights": "all tensors from which the pruning scores were computed",
    "rewind_checkpoint": "early weights, stored for rewinding",
    "optimiser_moments": "momentum and second moments of the optimiser",
    "patches": "patches with proofs about outputs, and the activation patterns in them",
    "normalisation": "input means and standard deviations computed from training records",
}


@dataclasses.dataclass(frozen=True)
class Provenance:
    """How a trained model was made; JSON values.

    Attributes:
        architecture: `expunge.models.Architecture.to_json()`: `{"name", "options", "input_shape", "classes", ..}`;
            the name is a registered network or a custom `package.module:function`.
        data: `{"name", "hash"}` of the records.
        recipe: the training recipe as a dictionary (`expunge.training.Recipe`); empty if unknown.
        seeds: seeds by purpose; `initial` reproduces the initial weights, `order` the order of records.
        weights_from: `training`, or the hash of an imported weights file.
        history: one line for each stage, in order.
        initial_weights: hash of the parameters that training started from; empty if unknown.
    """

    architecture: Mapping[str, Any]
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seeds: Mapping[str, int] = dataclasses.field(default_factory=dict)
    weights_from: str = "training"
    history: tuple[str, ...] = ()
    initial_weights: str = ""

    __repr__ = repr_fields

    def add_history(self, line: str) -> Provenance:
        """Return the provenance with one more line of history."""
        return dataclasses.replace(self, history=(*self.history, line))

    def to_json(self) -> dict[str, Any]:
        """Return the value of `provenance` in `trained.json` (docs/formats/trained.md)."""
        return {**dataclasses.asdict(self), "history": list(self.history)}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Provenance:
        """Read the provenance that `to_json` wrote; unknown keys are ignored."""
        known = {f.name for f in dataclasses.fields(cls)}
        values = {k: v for k, v in body.items() if k in known}
        return cls(**{**values, "history": tuple(values.get("history", ()))})


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """A trained model with its mask, split, provenance, and the tensors that methods need.

    Attributes:
        model: the network; it maps `N x ...` float32 inputs to `N x K` logits. Never modified in place.
        mask: which weights are kept, or None for a dense model.
        split: which records it was trained on (retain and forget set) and which it was not.
        provenance: architecture, data, recipe, seeds, history.
        state: tensors that training stored, by name of the state (`rewind_checkpoint`, `pruning_scores`, or one that a
            method defines), then by tensor name.
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

    def list_influence_state(self) -> tuple[str, ...]:
        """List the state that depends on training data (influence-bearing): keys of `INFLUENCE_STATE`, in order."""
        present = ["weights"]
        if any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats for m in self.model.modules()):
            present.append("batch_norm")
        if self.mask is not None:
            present.append("mask")
        if self.provenance.architecture.get("normalisation_from") == "training records":
            present.append("normalisation")
        present.extend(name for name in INFLUENCE_STATE if name in self.state)
        return tuple(name for name in INFLUENCE_STATE if name in present)

    def _summarise(self) -> Summary:
        facts = {
            "network": self._describe_network,
            "mask": lambda: "none: a dense model" if self.mask is None else self.mask._describe(),
            "records": lambda: f"{self.provenance.data.get('name', 'not recorded')}; {self.split._describe_counts()}",
            "normalisation": lambda: str(self.provenance.architecture.get("normalisation_from") or "none"),
            "state": self._describe_state,
            "weights from": lambda: f"{self.provenance.weights_from}, {plural(len(self.provenance.history), 'stage')}",
        }
        return Summary(self._describe, facts, lines=True, bars=self._density_bars)

    def _density_bars(self) -> list[Bar]:
        return [] if self.mask is None else self.mask._density_bars()

    def _describe(self) -> str:
        count = sum(parameter.numel() for parameter in self.model.parameters())
        return f"{self.provenance.architecture.get('name', type(self.model).__name__)}, {plural(count, 'parameter')}"

    def _describe_network(self) -> str:
        network = self.provenance.architecture
        shape = show_shape(network["input_shape"]) if "input_shape" in network else "not recorded"
        return f"{type(self.model).__name__}, input {shape}, classes {shorten(network.get('classes', 'not recorded'))}"

    def _describe_state(self) -> str:
        """The influence-bearing state, and tensors that a method stored under other names."""
        known = self.list_influence_state()
        return shorten_names((*known, *(name for name in self.state if name not in known)))

    __repr__ = repr_text
    _repr_html_ = repr_html


def plain_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict of a model under plain names (without the prefixes of DDP, Fabric and torch.compile).

    Raises:
        ModelError: two names are equal without their prefixes.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 1))
        >>> list(plain_state(nn.DataParallel(model)))
        ['0.weight', '0.bias']
    """
    return plain_names(model.state_dict())


def clone_model(model: nn.Module) -> nn.Module:
    """Copy a model: the copy shares no tensor with the caller's model and has no gradients.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> copied = clone_model(model)
        >>> torch.equal(copied.weight, model.weight), copied.weight is model.weight
        (True, False)
    """
    copied = copy.deepcopy(model)
    for parameter in copied.parameters():
        parameter.grad = None
    return copied
