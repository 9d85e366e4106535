"""What a callback of `expunge.bridges` recorded while the model was trained, as parts of the adopted model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from expunge.bridges import Recording
from expunge.core import early_checkpoints
from expunge.core.errors import ConfigError, DataError
from expunge.core.hashing import hash_tensors
from expunge.core.seeds import RecordedOrder
from expunge.core.show import plural
from expunge.core.trained import Trained, plain_state
from expunge.data.records import Records
from expunge.models.normalise import Normalised

from .rows import Rows

#: The seed that a recorded order stands for: it is a name only, since the order is that of the recording.
_ORDER = 0


def find_recorded_rows(recording: Recording, records: Records) -> Rows:
    """The rows of the data that the recorded training read.

    Args:
        recording: the recording.
        records: the records.

    Raises:
        DataError: the recording has other ids than the records.
    """
    unknown = recording.record_ids[~np.isin(recording.record_ids, records.record_ids)]
    if len(unknown):
        raise DataError(
            f"{len(unknown):,} of {len(recording.record_ids):,} recorded ids are not those of {records.name}",
            where=str(unknown[0])[:60],
            hint="give the callback the ids of the records: RecordTraining(..., ids=data.record_ids[rows])",
        )
    return records.rows(recording.record_ids.tolist())


def add_recording(trained: Trained, recording: Recording, model: nn.Module) -> tuple[Trained, RecordedOrder | None]:
    """Add recipe, initial weights and early checkpoints of a recording to a model; the order is for its runs.

    Args:
        trained: the adopted model; a recipe that it has already stays.
        recording: the recording.
        model: the user's own model, with its types.

    Raises:
        ModelError: the model has other weights than at the end of the recorded training.
        ConfigError: a network with `Normalise` before it; the recording is that of the model alone.
        DataError: the recorded training read other records than those in train.
    """
    recording.check_model(model)
    if isinstance(trained.model, Normalised):
        raise ConfigError("cannot be used beside a recording", where="normalise", hint="normalise the records instead")
    if set(recording.record_ids.tolist()) != set(trained.split.train.tolist()):
        raise DataError(
            f"the recorded training read {len(recording.record_ids):,} records, and train names "
            f"{len(trained.split.train):,}",
            where="train",
            hint="leave train out: the recording has its rows",
        )
    recipe = trained.provenance.recipe
    if not recipe and recording.recipe is not None:
        recipe = recording.recipe.to_json()
    seeds = {} if recording.order is None else {"order": _ORDER}
    state: dict[str, Mapping[str, torch.Tensor]] = dict(trained.state)
    names, first = set(dict(trained.model.named_parameters())), ""
    if recording.initial is not None:
        start = recording.read_checkpoint(0)
        state["initial_weights"] = {name: tensor.float() for name, tensor in start.items() if name in names}
        first = hash_tensors(state["initial_weights"])
    checkpoints = {}
    if recording.checkpoints and recipe:
        described = early_checkpoints.describe_checkpoint(trained.split.train, recipe, seeds, first)
        found = {epoch: _as_float(recording.read_checkpoint(epoch), trained.model) for epoch in recording.checkpoints}
        state[early_checkpoints.STATE] = early_checkpoints.pack_checkpoints(found)
        checkpoints = {str(epoch): described for epoch in found}
    provenance = dataclasses.replace(
        trained.provenance.add_history(
            f"recorded training: {plural(recording.epochs, 'epoch')}, {plural(recording.steps, 'step')}"
        ),
        recipe=recipe,
        recorded=(
            *(["recipe"] if recording.recipe is not None and recipe == recording.recipe.to_json() else []),
            "split",
        ),
        seeds={**trained.provenance.seeds, **seeds},
        initial_weights=first,
        checkpoints=checkpoints,
    )
    return dataclasses.replace(trained, provenance=provenance, state=state), recording.order


def _as_float(tensors: Mapping[str, torch.Tensor], network: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors in the types of the network."""
    types = {name: tensor.dtype for name, tensor in plain_state(network).items()}
    return {name: tensor.to(types.get(name, tensor.dtype)) for name, tensor in tensors.items()}
