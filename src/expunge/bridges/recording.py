"""A recording: ids, orders, recipe, seeds and checkpoints of a training by another tool, as a folder."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from expunge.core.errors import ConfigError, FileError, ModelError
from expunge.core.files import PathLike, read_json, read_tensors
from expunge.core.hashing import hash_file, hash_tensors
from expunge.core.seeds import RecordedOrder
from expunge.core.show import repr_fields
from expunge.core.trained import plain_state
from expunge.training.recipes import Recipe, get_recipe

KIND = "expunge.recording"
VERSION = 1
NAME, ORDERS, INITIAL = "recording.json", "orders.safetensors", "initial.safetensors"
_CHECKPOINT = re.compile(r"epoch-(\d{4,9})\.safetensors")


def name_checkpoint(epoch: int) -> str:
    """The name of the file with all tensors after an epoch, counted from 1."""
    return f"epoch-{epoch:04}.safetensors"


@dataclasses.dataclass(frozen=True, eq=False)
class Recording:
    """What a callback recorded while a model was trained elsewhere.

    Attributes:
        folder: the folder.
        record_ids: ids of the training records, by row of the dataset.
        rows: the rows of each epoch, in order; empty if the sampler did not show them.
        recipe: the recipe that repeats the training; None: see `problem`.
        problem: why there is no recipe, or no order; empty if there are both.
        seeds: seeds that the tool reports, by its names.
        versions: versions of the tool, torch and expunge.
        epochs: completed epochs.
        steps: optimiser steps.
        initial: file with all tensors before the first step, or None.
        checkpoints: files with all tensors after an epoch, by epoch.
        weights: hash of all tensors at the end (`expunge.core.hashing.hash_tensors`).
        files: SHA-256 of the files, by name.
    """

    folder: Path
    record_ids: NDArray[np.str_]
    rows: tuple[NDArray[np.int64], ...]
    recipe: Recipe | None
    problem: str
    seeds: Mapping[str, int]
    versions: Mapping[str, str]
    epochs: int
    steps: int
    initial: Path | None
    checkpoints: Mapping[int, Path]
    weights: str
    files: Mapping[str, str]

    __repr__ = repr_fields

    @property
    def order(self) -> RecordedOrder | None:
        """The order of records in each epoch (`Context.order`); None if it was not shown."""
        return RecordedOrder(tuple(self.record_ids[rows] for rows in self.rows)) if self.rows else None

    def require_recipe(self) -> Recipe:
        """Return the recipe.

        Raises:
            ConfigError: the training cannot be repeated; the message has the reason.
        """
        if self.recipe is None:
            raise ConfigError(f"the recorded training has no recipe: {self.problem}", where=self.folder)
        return self.recipe

    def read_checkpoint(self, epoch: int) -> dict[str, torch.Tensor]:
        """Read all tensors after an epoch; 0: before the first step.

        Raises:
            ConfigError: it was not stored.
            FileError: the file was changed.
        """
        path = self.checkpoints.get(epoch) if epoch else self.initial
        if path is None:
            known = [*([0] if self.initial else []), *self.checkpoints]
            raise ConfigError(
                f"the recording has no checkpoint of epoch {epoch}", where=self.folder, hint=f"it has {known}"
            )
        return read_tensors(path)[0]

    def check_model(self, model: nn.Module) -> None:
        """Raise ModelError unless the model has the weights at the end of the recorded training."""
        if hash_tensors(plain_state(model)) != self.weights:
            raise ModelError(
                "the weights are not those at the end of the recorded training", where=self.folder,
                hint="use the model as the training left it; a selected checkpoint is another model",
            )  # fmt: skip


def read_recording(folder: PathLike) -> Recording:
    """Read a folder that `expunge.bridges.hf.RecordTraining` or `expunge.bridges.lightning.RecordTraining` wrote.

    Args:
        folder: the folder; every file in it is compared with its recorded hash.

    Raises:
        FileError: a file is missing, damaged or changed, or is not of a recording.

    >>> from expunge.bridges import read_recording
    >>> from expunge.bridges.recorder import Recorder
    >>> import torch
    >>> model = torch.nn.Linear(2, 2)
    >>> recorder = Recorder("recorded", keep_epochs=(1,))
    >>> recorder.begin(model, rows=3, tool="example")
    >>> recorder.end_epoch(model)
    >>> recorder.finish(model, steps=3)
    >>> recording = read_recording("recorded")
    >>> recording.epochs, sorted(recording.checkpoints), recording.record_ids.tolist()
    (1, [1], ['row-000000', 'row-000001', 'row-000002'])
    >>> recording.check_model(model)
    """
    folder = Path(folder)
    path = folder / NAME
    body = read_json(path, KIND, VERSION)
    try:
        files = {str(name): str(found) for name, found in body["files"].items()}
        ids = np.asarray([str(name) for name in body["record_ids"]], dtype=np.str_)
        seeds = {str(name): int(seed) for name, seed in body["seeds"].items()}
        versions = {str(name): str(version) for name, version in body["versions"].items()}
        epochs, steps = int(body["epochs"]), int(body["steps"])
        recipe = None if body["recipe"] is None else get_recipe(body["recipe"])
        problem, weights = str(body["problem"]), str(body["weights"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileError(f"is not a recording ({type(error).__name__}: {error})", where=path) from error
    checkpoints = {}
    for name, expected in files.items():
        match = _CHECKPOINT.fullmatch(name)
        if match is None and name not in (ORDERS, INITIAL):
            raise FileError(f"names a file that no recording has: {name[:80]!r}", where=path)
        if hash_file(folder / name) != expected:
            raise FileError("is not the file that was recorded: its hash differs", where=folder / name)
        if match is not None:
            checkpoints[int(match.group(1))] = folder / name
    rows = _read_orders(folder / ORDERS, len(ids)) if ORDERS in files else ()
    return Recording(
        folder=folder, record_ids=ids, rows=rows, recipe=recipe, problem=problem, seeds=seeds, versions=versions,
        epochs=epochs, steps=steps, initial=folder / INITIAL if INITIAL in files else None,
        checkpoints=dict(sorted(checkpoints.items())), weights=weights, files=files,
    )  # fmt: skip


def _read_orders(path: Path, count: int) -> tuple[NDArray[np.int64], ...]:
    tensors, _ = read_tensors(path)
    names = sorted((name for name in tensors if name.isdecimal()), key=int)
    rows: list[NDArray[Any]] = [tensors[name].numpy() for name in names]
    if len(rows) != len(tensors) or any(part.dtype != np.int64 or part.ndim != 1 for part in rows):
        raise FileError("has other tensors than one order for each epoch", where=path)
    if any(len(part) and (part.min() < 0 or part.max() >= count) for part in rows):
        raise FileError(f"has rows that are not among the {count} records", where=path)
    return tuple(rows)
