"""The engine `single` of the ensemble trainer: every member by `fit`, one after the other.

Convolutions already fill a CPU core; stacked, they become grouped convolutions, which are slower there. What an
ensemble then shares is the records in memory and the result.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from expunge.core.errors import TrainingError
from expunge.core.trained import plain_state
from expunge.data.batches import Batches
from expunge.data.records import Records
from expunge.training.checkpoint import load_state
from expunge.training.loop import fit
from expunge.training.recipes import Recipe
from expunge.training.runtime import Runtime

from .member import Member, Stacked

if TYPE_CHECKING:
    from expunge.models import Architecture


Told = Callable[[int, int, float], None]


def train_each(
    records: Records,
    architecture: Architecture,
    members: Sequence[Member],
    recipe: Recipe,
    runtime: Runtime,
    *,
    start: int,
    stop: int,
    snapshots: Collection[int],
    label: str,
    told: Told,
) -> tuple[Stacked, dict[int, Stacked], NDArray[np.float64]]:
    """Train the members; returns their stacked states, those after the wanted epochs, and `M x E` mean losses.

    Args:
        records: the source.
        architecture: of the members.
        members: what differs between the models.
        recipe: of all.
        runtime: device; float32.
        start: epochs of the schedule that are already behind.
        stop: where to stop.
        snapshots: epochs after which to keep the states.
        label: for errors.
        told: called after each member with its number, its records and its last loss.

    Raises:
        TrainingError: a loss is not finite.
    """
    ends: list[Stacked] = []
    kept: dict[int, list[Stacked]] = {epoch: [] for epoch in sorted(snapshots) if start < epoch <= stop}
    losses = np.zeros((len(members), max(0, stop - start)))
    for number, member in enumerate(members):
        model = architecture.build(member.seeds["initial"])
        if member.start_from is not None:
            load_state(model, member.start_from)
        model = runtime.place(model)
        batches = Batches(
            records,
            member.rows,
            batch_size=recipe.batch_size,
            device=runtime.torch_device,
            augment=recipe.augment,
            channels_last=runtime.channels_last,
        )
        try:
            result = fit(
                model, batches, recipe, runtime=runtime, seed=member.seeds["order"], mask=member.mask, start=start,
                stop=stop, snapshots=set(kept), label=label,
            )  # fmt: skip
        except TrainingError as error:
            raise TrainingError(error.what, where=f"{label}: member {number}", hint=error.hint) from error
        losses[number] = [float(entry["loss"]) for entry in result.history]
        ends.append({name: tensor.detach().cpu().clone() for name, tensor in plain_state(model).items()})
        for epoch, found in kept.items():
            found.append(dict(result.snapshots[epoch]))
        told(number, (stop - start) * len(member.rows), losses[number, -1] if stop > start else 0.0)
    return _stacked(ends), {epoch: _stacked(found) for epoch, found in kept.items()}, losses


def _stacked(states: Sequence[Stacked]) -> Stacked:
    return {name: torch.stack([state[name] for state in states]) for name in states[0]}
