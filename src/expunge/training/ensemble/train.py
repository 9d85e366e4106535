"""Many small models at once: stacked parameters, each model with its own records, order, initial weights and mask.

Model m of an ensemble takes the same steps as `fit` takes for it alone: same batches, same rates, same masks. What
differs is the grouping of the arithmetic, so float32 results agree to rounding (measured in tests/training).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from expunge.core.errors import ConfigError, DataError, TrainingError, unknown_name_hint
from expunge.core.hashing import hash_tensors
from expunge.core.split import Split
from expunge.core.trained import Provenance, Trained, plain_state
from expunge.data.records import Records
from expunge.training.checkpoint import load_state
from expunge.training.predict import predict_logits
from expunge.training.progress import Progress
from expunge.training.recipes import Recipe
from expunge.training.recipes import recipe as as_recipe
from expunge.training.runtime import Runtime

from .member import Member, Stacked
from .sequential import train_each
from .stacked import Chunk, Engine, ProductsEngine, VmapEngine, fits_products

if TYPE_CHECKING:
    from expunge.models import Architecture

ENGINES: dict[str, type[Engine]] = {"products": ProductsEngine, "vmap": VmapEngine}
#: Names of the engines; `single` trains one member after the other.
ENGINE_NAMES = (*ENGINES, "single")

#: Models stacked at once: enough to share the overhead of a call, few enough for their weights to stay in the cache.
CHUNK = 64


@dataclasses.dataclass(frozen=True, eq=False)
class Ensemble:
    """The trained models of an ensemble of `M`.

    Attributes:
        architecture, members, recipe: what was trained.
        states: `M x ...` tensors by name: the parameters and buffers of all models, on the CPU.
        snapshots: the same after the epochs that were asked for.
        losses: `M x E` mean loss a record, by epoch.
        seconds: wall-clock time of all training.
    """

    architecture: Architecture
    members: tuple[Member, ...]
    recipe: Recipe
    states: Stacked
    snapshots: dict[int, Stacked]
    losses: NDArray[np.float64]
    seconds: float

    def __len__(self) -> int:
        return len(self.members)

    def state(self, index: int, epoch: int | None = None) -> dict[str, torch.Tensor]:
        """The state dict of one model (a copy), at the end or after a snapshot's epoch."""
        source = self.states if epoch is None else self.snapshots[epoch]
        return {name: tensor[index].clone() for name, tensor in source.items()}

    def model(self, index: int) -> nn.Module:
        """One model, in evaluation mode."""
        model = self.architecture.build(0).eval()
        load_state(model, self.state(index))
        return model

    def logits(self, records: Records, rows: NDArray[np.int64], *, runtime: Runtime | None = None) -> torch.Tensor:
        """Logits of all models on the records at `rows`: `M x N x K`."""
        return torch.stack([self.logits_of(i, records, rows, runtime=runtime) for i in range(len(self))])

    def logits_of(
        self, index: int, records: Records, rows: NDArray[np.int64], *, runtime: Runtime | None = None
    ) -> torch.Tensor:
        """Logits of one model on the records at `rows`: `N x K`."""
        return predict_logits(self.model(index), records, rows, runtime=runtime)

    def trained(self, index: int, records: Records, split: Split) -> Trained:
        """One model as `train` would have returned it; its split must hold the member's rows as training records.

        Raises:
            DataError: the member was trained on other records than the split says.
        """
        member = self.members[index]
        if not np.array_equal(np.sort(member.rows), np.sort(records.rows(split.train))):
            raise DataError("the split's training records are not those that this member was trained on", where=index)
        epochs = self.losses.shape[1]
        provenance = Provenance(
            architecture=self.architecture.to_json(),
            data={"name": records.name, "hash": records.hash},
            recipe=self.recipe.to_json(),
            seeds=member.seeds,
            history=(
                f"trained on {len(member.rows)} records for {epochs} epochs, stacked with {len(self) - 1} others",
            ),
            initial_weights=""
            if member.start_from is not None
            else hash_tensors(dict(self.architecture.build(member.seeds["initial"]).named_parameters())),
        )
        rewind = self.recipe.rewind_epoch
        state = {"rewind_checkpoint": self.state(index, rewind)} if rewind in self.snapshots else {}
        return Trained(self.model(index), member.mask, split, provenance, state)


def train_ensemble(
    records: Records,
    architecture: Architecture,
    members: Sequence[Member],
    *,
    recipe: str | Recipe = "one-cycle",
    runtime: Runtime | None = None,
    start: int = 0,
    stop: int | None = None,
    snapshots: Collection[int] | None = None,
    engine: str = "auto",
    chunk: int = CHUNK,
    progress: Progress | None = None,
    label: str = "ensemble",
) -> Ensemble:
    """Train all members, stacked; within rounding each equals its own `fit`.

    Args:
        records: where features and labels come from.
        architecture: of every member.
        members: what differs between the models. Numbers of records may differ.
        recipe: of every member; it must keep the last epoch (`select="last"`).
        runtime: device; precision must be float32.
        start: epochs of the schedule that are already behind.
        stop: where to stop, `recipe.epochs` if None.
        snapshots: epochs after which to keep all states; None: the recipe's rewind epoch.
        engine: `products` (multi-layer perceptrons without BatchNorm: batched matrix products with the backward pass
            written out), `vmap` (any network without dropout), `single` (one after the other, any network), or `auto`
            (`products` where it can, `single` for convolutions on the CPU, else `vmap`).
        chunk: models stacked at once.
        progress: told of progress in records.
        label: what this run is called in progress and errors.

    Raises:
        ConfigError: unknown engine, a recipe that selects the best epoch, a precision other than float32.
        DataError: a member has no records, or there is no member.
        TrainingError: a loss is not finite, or the network draws random numbers (dropout).
    """
    recipe, runtime = as_recipe(recipe), runtime or Runtime()
    if engine != "auto" and engine not in ENGINE_NAMES:
        raise ConfigError(f"unknown engine {engine!r}", where="engine", hint=unknown_name_hint(engine, ENGINE_NAMES))
    if recipe.select != "last":
        raise ConfigError(
            "an ensemble keeps the last epoch of every model; the recipe selects the best",
            where=f"recipe {recipe.name}",
            hint="use dataclasses.replace(recipe, select='last'), or train the models one by one",
        )
    if runtime.precision != "float32":
        raise ConfigError("an ensemble is trained in float32", where="precision")
    if not members:
        raise DataError("an ensemble needs at least one member", where=label)
    for index, member in enumerate(members):
        if len(member.rows) == 0:
            raise DataError("the member has no records to train on", where=f"{label}: member {index}")
    masked = sum(member.mask is not None for member in members)
    if masked not in (0, len(members)):
        raise ConfigError(f"{masked} of {len(members)} members have a mask; all or none must", where=label)
    if engine == "auto":
        engine = _fastest(records, architecture, recipe, runtime)
    stop = recipe.epochs if stop is None else stop
    wanted = {recipe.rewind_epoch} if snapshots is None else set(snapshots)
    if engine == "single":
        begun, total, seen = time.perf_counter(), (stop - start) * sum(len(m.rows) for m in members), 0

        def told(number: int, records_seen: int, loss: float) -> None:
            nonlocal seen
            seen += records_seen
            if progress is not None:
                progress(label, seen, total, {"member": number + 1, "loss": loss})

        ends, then, losses = train_each(
            records, architecture, members, recipe, runtime, start=start, stop=stop, snapshots=wanted, label=label,
            told=told,
        )  # fmt: skip
        seconds = time.perf_counter() - begun
        return Ensemble(architecture, tuple(members), recipe, ends, then, losses, seconds)
    work = ENGINES[engine](records, architecture, recipe, runtime)
    order = np.argsort([-len(member.rows) for member in members], kind="stable")
    total, seen = (stop - start) * sum(len(member.rows) for member in members), 0
    begun = time.perf_counter()
    parts: list[Stacked] = []
    kept: dict[int, list[Stacked]] = {epoch: [] for epoch in sorted(wanted) if start < epoch <= stop}
    losses = np.zeros((len(members), max(0, stop - start)))
    for group in _groups(order, members, chunk, equal=work.needs_equal_counts):
        some = [members[i] for i in group]
        part = Chunk(
            rows=[m.rows for m in some],
            orders=[m.seeds["order"] for m in some],
            states=[_first_state(m, architecture) for m in some],
            masks=[m.mask for m in some],
        )
        job = work.begin(part)
        for epoch in range(start, stop):
            losses[group, epoch - start] = job.epoch(epoch)
            bad = [int(i) for i in group if not np.isfinite(losses[i, epoch - start])]
            if bad:
                raise TrainingError(
                    f"the loss of epoch {epoch + 1} is {losses[bad[0], epoch - start]}",
                    where=f"{label}: member {bad[0]}",
                    hint="lower the learning rate, or check the records",
                )
            if epoch + 1 in kept:
                kept[epoch + 1].append(job.states())
            seen += sum(len(m.rows) for m in some)
            if progress is not None:
                info = {"epoch": epoch + 1, "loss": float(losses[group, epoch - start].mean())}
                progress(label, seen, total, info)
        parts.append(job.states())
    runtime.synchronise()
    back = np.argsort(np.concatenate(list(_groups(order, members, chunk, equal=work.needs_equal_counts))))
    return Ensemble(
        architecture,
        tuple(members),
        recipe,
        _joined(parts, back),
        {epoch: _joined(found, back) for epoch, found in kept.items()},
        losses,
        time.perf_counter() - begun,
    )


def _fastest(records: Records, architecture: Architecture, recipe: Recipe, runtime: Runtime) -> str:
    if fits_products(architecture, records, recipe):
        return "products"
    convolutions = any(p.dim() > 2 for p in architecture.build(0).parameters())
    return "single" if convolutions and runtime.torch_device.type == "cpu" else "vmap"


def _first_state(member: Member, architecture: Architecture) -> dict[str, torch.Tensor]:
    if member.start_from is not None:
        return member.start_from
    return plain_state(architecture.build(member.seeds["initial"]))


def _groups(order: NDArray[np.int64], members: Sequence[Member], chunk: int, *, equal: bool) -> list[NDArray[np.int64]]:
    """Chunks of member numbers, most records first; of one number of records each where `equal`."""
    counts = np.asarray([len(members[i].rows) for i in order])
    edges = np.flatnonzero(np.diff(counts)) + 1 if equal else np.asarray([], dtype=np.int64)
    groups: list[NDArray[np.int64]] = []
    for part in np.split(order, edges):
        groups.extend(part[i : i + chunk] for i in range(0, len(part), max(1, chunk)))
    return groups


def _joined(parts: list[Stacked], back: NDArray[np.int64]) -> Stacked:
    index = torch.from_numpy(back)
    return {name: torch.cat([part[name] for part in parts]).index_select(0, index) for name in parts[0]}
