"""Writes a recording while another tool trains: the part that all bridges share."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from expunge import __version__
from expunge.core.errors import ConfigError, ExpungeError
from expunge.core.files import PathLike, write_json, write_tensors
from expunge.core.hashing import hash_file, hash_tensors
from expunge.core.trained import plain_state
from expunge.training.recipes import Recipe

from .recording import INITIAL, KIND, NAME, ORDERS, VERSION, name_checkpoint


class RecordingSampler:
    """A sampler that yields what another one yields, and keeps it: one list of rows for each time it was iterated.

    Args:
        sampler: the other sampler; its attributes are those of this object.
    """

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler
        self.drawn: list[list[int]] = []

    def __iter__(self) -> Iterator[Any]:
        rows: list[int] = []
        for row in self.sampler:
            if not rows:
                self.drawn.append(rows)
            rows.append(int(row))
            yield row

    def __len__(self) -> int:
        return len(self.sampler)

    def __getattr__(self, name: str) -> Any:
        if name == "sampler":  # not set yet: a copy is being made
            raise AttributeError(name)
        return getattr(self.sampler, name)


class Recorder:
    """Writes a folder that `read_recording` reads.

    Args:
        folder: the folder; created, and it must not hold another recording.
        ids: ids of the records, by row of the dataset; None: `row-000000` and so on, as `Records.from_dataset` makes.
        keep_epochs: epochs after which all tensors are stored, counted from 1.
        keep_initial: store all tensors before the first step, which a retraining of a pretrained model starts from.

    Raises:
        ConfigError: the folder holds a recording, or an epoch is below 1.
    """

    def __init__(
        self, folder: PathLike, *, ids: Sequence[str] | None = None, keep_epochs: Sequence[int] = (),
        keep_initial: bool = True,
    ) -> None:  # fmt: skip
        self.folder = Path(folder)
        self._check_folder()
        if any(not isinstance(epoch, int) or epoch < 1 for epoch in keep_epochs):
            raise ConfigError(f"epochs are counted from 1, not {list(keep_epochs)}", where="keep_epochs")
        self.ids, self.keep_epochs, self.keep_initial = ids, frozenset(keep_epochs), keep_initial
        self.files: dict[str, str] = {}
        self.epochs = 0
        self.sampler: RecordingSampler | None = None
        self.body: dict[str, Any] = {}

    def begin(
        self,
        model: nn.Module,
        *,
        rows: int,
        tool: str,
        recipe: Recipe | None = None,
        problem: str = "",
        seeds: Mapping[str, int] | None = None,
        versions: Mapping[str, str] | None = None,
    ) -> None:
        """Store what is known before the first step.

        Args:
            model: the model.
            rows: number of training records.
            tool: what trains it.
            recipe: that repeats the training, or None.
            problem: why there is none.
            seeds: seeds that the tool reports.
            versions: of the tool.

        Raises:
            ConfigError: the number of ids is not that of the records, or two ids are equal; or the folder holds a
                recording: each training needs a recorder of its own.
        """
        self._check_folder()
        ids = [f"row-{row:06}" for row in range(rows)] if self.ids is None else [str(one) for one in self.ids]
        if len(ids) != rows:
            raise ConfigError(f"{len(ids)} ids for {rows} training records", where="ids")
        if len(set(ids)) != rows:
            raise ConfigError("two records have the same id", where="ids")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.body = {
            "tool": tool,
            "record_ids": ids,
            "recipe": None if recipe is None else recipe.to_json(),
            "problem": problem,
            "seeds": dict(seeds or {}),
            "versions": {
                "expunge": __version__, "torch": torch.__version__, "python": platform.python_version(),
                **(versions or {}),
            },
        }  # fmt: skip
        if self.keep_initial:
            self._write(INITIAL, model)

    def watch(self, loader: Any) -> None:
        """Record the order of records that a data loader's sampler shows; if it shows none, say why in `problem`."""
        loader = getattr(loader, "base_dataloader", loader)  # accelerate wraps it
        batches: Any = getattr(loader, "batch_sampler", None)
        while hasattr(batches, "batch_sampler"):
            batches = batches.batch_sampler
        if getattr(batches, "sampler", None) is None or not hasattr(batches.sampler, "__len__"):
            self.add_problem("the data loader has no sampler that shows the order of records")
            return
        self.sampler = RecordingSampler(batches.sampler)
        batches.sampler = self.sampler

    def add_problem(self, text: str) -> None:
        """Add a reason why the training cannot be repeated exactly."""
        self.body["problem"] = "; ".join(part for part in (self.body["problem"], text) if part)

    def end_epoch(self, model: nn.Module) -> None:
        """Count an epoch, and store all tensors if it is one of `keep_epochs`."""
        self.epochs += 1
        if self.epochs in self.keep_epochs:
            self._write(name_checkpoint(self.epochs), model)

    def finish(self, model: nn.Module, *, steps: int) -> None:
        """Write the recording.

        Args:
            model: the model after the last step.
            steps: optimiser steps.
        """
        drawn = [] if self.sampler is None else self.sampler.drawn[: self.epochs]
        if drawn:
            orders = {str(epoch + 1): torch.tensor(rows, dtype=torch.int64) for epoch, rows in enumerate(drawn)}
            write_tensors(self.folder / ORDERS, orders)
            self.files[ORDERS] = hash_file(self.folder / ORDERS)
            counts = np.bincount(np.concatenate([np.asarray(rows) for rows in drawn]))
            if set(counts.tolist()) != {len(drawn)} or len(counts) != len(self.body["record_ids"]):
                self.add_problem("not every record was drawn once in every epoch")
        elif self.epochs and not self.body["problem"]:
            self.add_problem("the order of records was not shown")
        write_json(
            self.folder / NAME, KIND, VERSION,
            {
                **self.body, "epochs": self.epochs, "steps": steps, "weights": hash_tensors(plain_state(model)),
                "files": self.files,
            },
        )  # fmt: skip

    def _check_folder(self) -> None:
        if (self.folder / NAME).exists():
            raise ConfigError("the folder holds a recording", where=self.folder, hint="choose another folder")

    def _write(self, name: str, model: nn.Module) -> None:
        write_tensors(self.folder / name, plain_state(model))
        self.files[name] = hash_file(self.folder / name)


def read_recipe(make: Any) -> tuple[Recipe | None, str]:
    """Call a function that makes a recipe; return it, or None and the reason."""
    try:
        return make(), ""
    except ExpungeError as error:
        return None, str(error).split("\n")[0]
