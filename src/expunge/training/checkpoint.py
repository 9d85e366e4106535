"""Checkpoints of unfinished training: everything that the next epoch depends on, in one safetensors file.

All randomness of an epoch is derived from (seed, epoch, record id). So weights, buffers, momentum and the number of
finished epochs are enough for a resumed run to equal an uninterrupted one bit for bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from expunge.core.errors import FileError
from expunge.core.files import read_tensors, write_tensors
from expunge.core.hashing import hash_json, hash_tensors, plain_name
from expunge.core.show import repr_fields
from expunge.core.trained import plain_state

#: The optimisers of a run, by the name of their momentum; mostly one, with the empty name.
Optimisers = Mapping[str, torch.optim.Optimizer]
KIND = "expunge.checkpoint"
VERSION = 3


@dataclasses.dataclass
class LoopState:
    """State of a training loop after some epochs. The field names are keys of the checkpoint file.

    Attributes:
        epoch: number of finished epochs (position in the learning-rate schedule).
        history: one dictionary per finished epoch.
        best: state dict of the best epoch, or of the last good one; empty if the run keeps neither.
        best_score: its validation accuracy in percent.
        snapshots: state dicts after the requested epochs, by epoch.
        moments: moments of the optimiser after the same epochs, if the recipe keeps them (`copy_moments`).
        trained_records, forward_records, optimiser_steps, seconds: cost so far.
    """

    epoch: int
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    best: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    best_score: float = -1.0
    snapshots: dict[int, dict[str, torch.Tensor]] = dataclasses.field(default_factory=dict)
    moments: dict[int, dict[str, torch.Tensor]] = dataclasses.field(default_factory=dict)
    trained_records: int = 0
    forward_records: int = 0
    optimiser_steps: int = 0
    seconds: float = 0.0

    __repr__ = repr_fields

    def keep(self, model: nn.Module, epoch: int) -> None:
        """Keep a copy of the state of a model as that of the best, or last good, epoch."""
        self.best = {**copy_state(model), "__epoch__": torch.tensor(epoch)}


def copy_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copy the state dict to the CPU, under plain names."""
    return {name: t.detach().to("cpu", copy=True).contiguous() for name, t in plain_state(model).items()}


def save(path: Path, identity: str, model: nn.Module, optimisers: Optimisers, state: LoopState) -> None:
    """Write the checkpoint atomically. `identity` is the hash of the run that it belongs to (see `loop.fit`)."""
    tensors = {f"model/{k}": v for k, v in plain_state(model).items()}
    for momentum, optimiser in optimisers.items():
        section = f"optimiser:{momentum}" if momentum else "optimiser"
        tensors.update({f"{section}/{k}": v for k, v in _list_moments(model, optimiser).items()})
    tensors.update({f"best/{k}": v for k, v in state.best.items()})
    for epoch, snapshot in state.snapshots.items():
        tensors.update({f"snapshot/{epoch}/{k}": v for k, v in snapshot.items()})
    for epoch, moments in state.moments.items():
        tensors.update({f"moments/{epoch}/{k}": v for k, v in moments.items()})
    body = {k: v for k, v in vars(state).items() if k not in ("best", "snapshots", "moments")}
    metadata = {"kind": KIND, "schema_version": VERSION, "identity": identity, "done": body}
    write_tensors(path, tensors, {**metadata, "hash": _hash_contents(metadata, tensors)})


def _hash_contents(metadata: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
    return hash_json({**metadata, "tensors": hash_tensors(tensors)})


def restore(path: Path, identity: str, model: nn.Module, optimisers: Optimisers) -> LoopState | None:
    """Load a checkpoint into model and optimisers, in place; return None if there is no file.

    Raises:
        FileError: the file is damaged, or another run wrote it (recipe, seed, records, mask or initial weights differ).
    """
    if not path.exists():
        return None
    hint = f"remove {path} to start from the beginning"
    try:
        tensors, metadata = read_tensors(path)
    except FileError as error:
        raise FileError(f"is a damaged checkpoint: {error.what}", where=path, hint=hint) from error
    if metadata.get("kind") != KIND or metadata.get("schema_version") != VERSION:
        raise FileError("is not a training checkpoint of this release", where=path, hint=hint)
    recorded = metadata.pop("hash", None)
    if recorded != _hash_contents(metadata, tensors):
        raise FileError("is a damaged checkpoint: it does not have the hash in it", where=path, hint=hint)
    if metadata.get("identity") != identity:
        raise FileError(
            "belongs to another run (recipe, seed, records, mask or initial weights differ)",
            where=path,
            hint=f"{hint}, or choose another checkpoint path",
        )
    state = LoopState(**metadata["done"])
    moments: dict[str, dict[str, torch.Tensor]] = {}
    model_tensors: dict[str, torch.Tensor] = {}
    for key, tensor in tensors.items():
        section, _, rest = key.partition("/")
        if section == "model":
            model_tensors[rest] = tensor
        elif section == "best":
            state.best[rest] = tensor
        elif section in ("snapshot", "moments"):
            epoch, _, name = rest.partition("/")
            kept = state.snapshots if section == "snapshot" else state.moments
            kept.setdefault(int(epoch), {})[name] = tensor
        else:
            moments.setdefault(section.partition(":")[2], {})[rest] = tensor
    for momentum, found in moments.items():
        load_moments(model, optimisers[momentum], found)
    load_state(model, model_tensors)
    return state


def _list_moments(model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The state of an optimiser as `SLOT/NAME`: `momentum_buffer`, `exp_avg`, `exp_avg_sq`, `step`."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{slot}/{names[id(parameter)]}": value
        for parameter, slots in optimiser.state.items()
        for slot, value in slots.items()
        if isinstance(value, torch.Tensor)
    }


def copy_moments(model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Copy the state of an optimiser to the CPU, as `SLOT/NAME` with plain names of the parameters."""
    found = _list_moments(model, optimiser)
    named = {f"{key.partition('/')[0]}/{plain_name(key.partition('/')[2])}": value for key, value in found.items()}
    return {key: value.detach().to("cpu", copy=True).contiguous() for key, value in named.items()}


def load_moments(model: nn.Module, optimiser: torch.optim.Optimizer, moments: Mapping[str, torch.Tensor]) -> None:
    """Put stored state (`copy_moments`) into an optimiser, in place."""
    parameters = {plain_name(name): parameter for name, parameter in model.named_parameters()}
    parameters |= dict(model.named_parameters())
    for key, tensor in moments.items():
        slot, _, name = key.partition("/")
        parameter = parameters[name]
        fits = tensor.shape == parameter.shape  # Adam counts its steps in a scalar
        value = torch.empty_like(parameter).copy_(tensor) if fits else tensor.clone()
        optimiser.state[parameter][slot] = value.detach()


def load_state(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Copy a state dict with plain names into a model whose own names may carry wrapper prefixes (`module.`)."""
    target = plain_state(model)
    with torch.no_grad():
        for name, tensor in state.items():
            target[name].copy_(tensor)
