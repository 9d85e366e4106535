"""Early checkpoints: all tensors after some of the first epochs, and which records they have seen.

They are stored as the state `early_checkpoints` of a trained model. Each tensor is named `EPOCH/NAME`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from .errors import ModelError
from .hashing import hash_json
from .mask import Mask
from .split import Ids

STATE = "early_checkpoints"
#: Moments of the optimiser at the same epochs; each tensor is named `EPOCH/SLOT/NAME`.
MOMENTS = "optimiser_moments"
#: A number of epochs, as text.
EPOCH = re.compile(r"[1-9][0-9]{0,8}")

#: Fields of a recipe that do not change the weights after its first epochs.
_WITHOUT_EFFECT = ("name", "select", "rewind", "keep_epochs", "keep_moments")


def pack_checkpoints(snapshots: Mapping[int, Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return the tensors of all epochs under the names `EPOCH/NAME`.

    >>> import torch
    >>> from expunge.core.early_checkpoints import pack_checkpoints, unpack_checkpoints
    >>> packed = pack_checkpoints({3: {"weight": torch.ones(2)}})
    >>> list(packed), list(unpack_checkpoints(packed)[3])
    (['3/weight'], ['weight'])
    """
    return {f"{epoch}/{name}": tensor for epoch in sorted(snapshots) for name, tensor in snapshots[epoch].items()}


def unpack_checkpoints(state: Mapping[str, torch.Tensor]) -> dict[int, dict[str, torch.Tensor]]:
    """Return the tensors by epoch that `pack_checkpoints` packed.

    Raises:
        ModelError: a name does not begin with an epoch.
    """
    found: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in state.items():
        epoch, slash, name = key.partition("/")
        if not (slash and name and EPOCH.fullmatch(epoch)):
            raise ModelError("a tensor of an early checkpoint is named EPOCH/NAME", where=f"{STATE}: {key[:60]}")
        found.setdefault(int(epoch), {})[name] = tensor
    return found


def hash_records(record_ids: Ids) -> str:
    """Hash of a set of records: of their ids, sorted."""
    return hash_json(np.sort(record_ids).tolist())


def describe_checkpoint(
    record_ids: Ids,
    recipe: Mapping[str, Any],
    seeds: Mapping[str, int],
    initial_weights: str,
    mask: Mask | None = None,
) -> dict[str, Any]:
    """Return what a checkpoint states: the records that its weights have seen, and the run that made it.

    Args:
        record_ids: the records of the run; each epoch reads all of them.
        recipe: its recipe, as JSON values.
        seeds: `order` is the seed of its order of records.
        initial_weights: hash of the parameters that it started from.
        mask: the mask that it had from the first step on, or None.

    Returns:
        `records` (hash of the ids), `count` (their number), `run` (hash of recipe, order and initial weights), and the
        hash of the `mask`, if there was one.
    """
    relevant = {name: value for name, value in recipe.items() if name not in _WITHOUT_EFFECT}
    run = {"recipe": relevant, "order": seeds.get("order"), "initial_weights": initial_weights}
    described = {"records": hash_records(record_ids), "count": len(record_ids), "run": hash_json(run)}
    return described if mask is None else {**described, "mask": mask.hash()}
