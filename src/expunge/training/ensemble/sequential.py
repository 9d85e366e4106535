"""The engine `single` of the ensemble trainer: it trains every member by `fit`, one after the other.

Stacked convolutions are grouped convolutions, which are slower on a CPU than one convolution after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from expunge.core.errors import TrainingError
from expunge.core.trained import plain_state
from expunge.data.records import Records
from expunge.training.checkpoint import load_state
from expunge.training.context import Context
from expunge.training.loop import fit
from expunge.training.recipes import Recipe
from expunge.training.runtime import Runtime

from .member import Member, Stacked

if TYPE_CHECKING:
    from expunge.models import Architecture


Report = Callable[[int, int, float], None]


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
    report: Report,
) -> tuple[Stacked, dict[int, Stacked], NDArray[np.float64]]:
    """Train the members one by one.

    Args:
        records: features and labels.
        architecture: the network of all members.
        members: the settings of each model.
        recipe: the recipe of all members.
        runtime: device and precision; members train on one process.
        start: epochs of the learning-rate schedule to skip.
        stop: the epoch to stop after.
        snapshots: epochs after which to store the states.
        label: name of this run in errors.
        report: called after each member with its number, the records it processed and its last loss.

    Returns:
        The stacked final states, the stacked states by snapshot epoch, and the `M x E` mean losses.

    Raises:
        TrainingError: a loss is not finite.
    """
    final: list[Stacked] = []
    runtime = runtime.alone()
    stored: dict[int, list[Stacked]] = {epoch: [] for epoch in sorted(snapshots) if start < epoch <= stop}
    losses = np.zeros((len(members), max(0, stop - start)))
    for number, member in enumerate(members):
        model = architecture.build(member.seeds["initial"])
        if member.start_from is not None:
            load_state(model, member.start_from)
        model = runtime.place(model)
        context = Context(records, runtime, member.seeds["order"])
        try:
            result = fit(
                model, member.rows, recipe, context, mask=member.mask, start=start, stop=stop, snapshots=set(stored),
                label=label,
            )  # fmt: skip
        except TrainingError as error:
            raise TrainingError(error.what, where=f"{label}: member {number}", hint=error.hint) from error
        losses[number] = [float(entry["loss"]) for entry in result.history]
        final.append({name: tensor.detach().cpu().clone() for name, tensor in plain_state(model).items()})
        for epoch, states in stored.items():
            states.append(dict(result.snapshots[epoch]))
        report(number, (stop - start) * len(member.rows), losses[number, -1] if stop > start else 0.0)
    return _stack(final), {epoch: _stack(states) for epoch, states in stored.items()}, losses


def _stack(states: Sequence[Stacked]) -> Stacked:
    return {name: torch.stack([state[name] for state in states]) for name in states[0]}
