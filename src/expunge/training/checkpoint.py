"""Resumable training: everything that the next epoch depends on, in one safetensors file.

All randomness of an epoch is derived from (seed, epoch, record id), so weights, buffers, momentum and the number of
finished epochs are enough: a resumed run equals an uninterrupted one bit for bit.
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
from expunge.core.trained import plain_state

KIND = "expunge.checkpoint"
VERSION = 1


@dataclasses.dataclass
class Progressed:
    """What a training loop has done so far.

    Attributes:
        epoch: finished epochs (position in the schedule).
        history: one dictionary a finished epoch.
        best: state of the best epoch, empty where none is kept.
        best_score: its validation accuracy in percent.
        snapshots: states taken on the way, by epoch.
        trained_records, forward_records, seconds: cost so far.
    """

    epoch: int
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    best: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    best_score: float = -1.0
    snapshots: dict[int, dict[str, torch.Tensor]] = dataclasses.field(default_factory=dict)
    trained_records: int = 0
    forward_records: int = 0
    seconds: float = 0.0


def copied_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the state dict on the CPU, under plain names."""
    return {name: t.detach().to("cpu", copy=True).contiguous() for name, t in plain_state(model).items()}


def save(path: Path, identity: str, model: nn.Module, optimiser: torch.optim.Optimizer, done: Progressed) -> None:
    """Write the checkpoint atomically. `identity` names the run it belongs to."""
    tensors = {f"model/{k}": v for k, v in plain_state(model).items()}
    names = {id(p): n for n, p in model.named_parameters()}
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            for key, value in optimiser.state.get(parameter, {}).items():
                if isinstance(value, torch.Tensor):
                    tensors[f"optimiser/{key}/{names[id(parameter)]}"] = value
    tensors.update({f"best/{k}": v for k, v in done.best.items()})
    for epoch, state in done.snapshots.items():
        tensors.update({f"snapshot/{epoch}/{k}": v for k, v in state.items()})
    body = {k: v for k, v in vars(done).items() if k not in ("best", "snapshots")}
    write_tensors(path, tensors, {"kind": KIND, "schema_version": VERSION, "identity": identity, "done": body})


def restore(path: Path, identity: str, model: nn.Module, optimiser: torch.optim.Optimizer) -> Progressed | None:
    """Put a checkpoint back into model and optimiser; None where there is no file.

    Raises:
        FileError: damaged, or written by another run (other recipe, seed, records, mask or initial weights).
    """
    if not path.exists():
        return None
    tensors, metadata = read_tensors(path)
    if metadata.get("kind") != KIND or metadata.get("schema_version") != VERSION:
        raise FileError("is not a training checkpoint of this release", where=path, hint="remove it to start anew")
    if metadata.get("identity") != identity:
        raise FileError(
            "belongs to another run (recipe, seed, records, mask or initial weights differ)",
            where=path,
            hint="remove it to start anew, or choose another checkpoint path",
        )
    done = Progressed(**metadata["done"])
    parameters = dict(model.named_parameters())
    mine: dict[str, torch.Tensor] = {}
    for key, tensor in tensors.items():
        kind, _, rest = key.partition("/")
        if kind == "model":
            mine[rest] = tensor
        elif kind == "best":
            done.best[rest] = tensor
        elif kind == "snapshot":
            epoch, _, name = rest.partition("/")
            done.snapshots.setdefault(int(epoch), {})[name] = tensor
        else:
            slot, _, name = rest.partition("/")
            parameter = parameters[name]
            moment = torch.empty_like(parameter).copy_(tensor)
            optimiser.state[parameter][slot] = moment
    load_state(model, mine)
    return done


def load_state(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Copy a plain-named state into a model whose names may carry wrapper prefixes."""
    own = plain_state(model)
    with torch.no_grad():
        for name, tensor in state.items():
            own[name].copy_(tensor)
