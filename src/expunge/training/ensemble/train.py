"""Training many small models at once, with stacked parameters.

Each member has its own records, order, initial weights and mask. It takes the same steps as with `fit`: same batches,
learning rates and mask. Only the grouping of the arithmetic differs, so float32 results agree up to rounding.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from expunge.core.errors import ConfigError, DataError, TrainingError, unknown_name_hint
from expunge.core.hashing import hash_tensors
from expunge.core.show import plural, repr_fields
from expunge.core.split import Split
from expunge.core.trained import Provenance, Trained, plain_state
from expunge.data.records import Records
from expunge.models.factory import is_custom
from expunge.models.trainable import check_trainable
from expunge.training.checkpoint import load_state
from expunge.training.predict import predict_logits
from expunge.training.progress import Progress
from expunge.training.recipes import Recipe, get_recipe
from expunge.training.runtime import Runtime

from .member import Member, Stacked
from .sequential import train_each
from .stackable import find_stacking_obstacle
from .stacked import Chunk, Engine, ProductsEngine, VmapEngine, can_use_products

if TYPE_CHECKING:
    from expunge.models import Architecture

_LOG = logging.getLogger(__name__)
ENGINES: dict[str, type[Engine]] = {"products": ProductsEngine, "vmap": VmapEngine}
#: Names of the engines; `single` trains the members one after the other.
ENGINE_NAMES = (*ENGINES, "single")

#: Default number of models in a stack: many, to share the overhead of a call; few enough that their weights fit in the
#: cache.
CHUNK = 64


@dataclasses.dataclass(frozen=True, eq=False)
class Ensemble:
    """The `M` trained models of an ensemble.

    Attributes:
        architecture, members, recipe: the arguments of `train_ensemble`.
        states: parameters and buffers of all models, `M x ...` tensors by name, on the CPU.
        snapshots: the same after the requested epochs, by epoch.
        losses: `M x E` mean losses per record, by epoch.
        seconds: wall-clock time of the training.
        engine: the engine that trained them, one of `ENGINE_NAMES`.
        obstacle: why `auto` trained one by one instead of stacked; empty if nothing prevented it.
    """

    architecture: Architecture
    members: tuple[Member, ...]
    recipe: Recipe
    states: Stacked
    snapshots: dict[int, Stacked]
    losses: NDArray[np.float64]
    seconds: float
    engine: str = "single"
    obstacle: str = ""

    __repr__ = repr_fields

    def __len__(self) -> int:
        return len(self.members)

    def state(self, index: int, epoch: int | None = None) -> dict[str, torch.Tensor]:
        """Copy the state dict of one model, at the end or after the epoch of a snapshot."""
        states = self.states if epoch is None else self.snapshots[epoch]
        return {name: tensor[index].clone() for name, tensor in states.items()}

    def model(self, index: int) -> nn.Module:
        """Build one model, in evaluation mode."""
        model = self.architecture.build(0).eval()
        load_state(model, self.state(index))
        return model

    def predict_logits(
        self, records: Records, rows: NDArray[np.int64], *, runtime: Runtime | None = None
    ) -> torch.Tensor:
        """Compute the logits of all models on the records at `rows`: `M x N x K`."""
        return torch.stack([self.predict_member(i, records, rows, runtime=runtime) for i in range(len(self))])

    def predict_member(
        self, index: int, records: Records, rows: NDArray[np.int64], *, runtime: Runtime | None = None
    ) -> torch.Tensor:
        """Compute the logits of one model on the records at `rows`: `N x K`."""
        return predict_logits(self.model(index), records, rows, runtime=runtime)

    def _describe_engine(self) -> str:
        others = f"{len(self) - 1} others"
        if self.engine != "single":
            return f"stacked with {others}"
        return f"one by one with {others}" + (f" ({self.obstacle})" if self.obstacle else "")

    def as_trained(self, index: int, records: Records, split: Split) -> Trained:
        """Return one model as `train` returns it.

        Args:
            index: number of the member.
            records: the records of the ensemble.
            split: a split whose training records are the member's rows.

        Raises:
            DataError: the member was trained on other records than the training records of the split.
        """
        member = self.members[index]
        if not np.array_equal(np.sort(member.rows), np.sort(records.rows(split.train))):
            raise DataError("the training records of the split are not those of this member", where=index)
        epochs = self.losses.shape[1]
        provenance = Provenance(
            architecture=self.architecture.to_json(),
            data={"name": records.name, "hash": records.hash},
            recipe=self.recipe.to_json(),
            seeds=member.seeds,
            history=(
                f"trained on {plural(len(member.rows), 'record')} for {plural(epochs, 'epoch')}, "
                f"{self._describe_engine()}",
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
    """Train all members of an ensemble. Up to rounding, each equals a model that `fit` trains.

    Args:
        records: features and labels.
        architecture: the network of all members.
        members: the settings of each model; the numbers of records may differ.
        recipe: the recipe of all members; it must select the last epoch (`select="last"`).
        runtime: device and precision; the stacked engines compute in float32 only.
        start: epochs of the learning-rate schedule to skip.
        stop: the epoch to stop after, `recipe.epochs` if None.
        snapshots: epochs after which to store all states; None: the rewind epoch of the recipe.
        engine: `products` (multi-layer perceptrons without BatchNorm, by batched matrix products with an explicit
            backward pass), `vmap` (networks without random draws whose operations can be stacked), `single` (any
            network, one member after the other), or `auto`: `products` if it supports the run, else `single` for
            convolutions on the CPU, else `vmap`, or `single` if the network cannot be stacked. The reason is logged,
            and is an attribute of the ensemble (`obstacle`).
        chunk: number of models in a stack.
        progress: callback for progress in records.
        label: name of this run in progress and errors.

    Raises:
        ConfigError: the engine is unknown, the recipe selects the best epoch, a stacked engine is given with another
            precision than float32, or only some of the members have a mask.
        DataError: there are no members, or a member has no records.
        ModelError: the network cannot be trained (`expunge.models.check_trainable`).
        TrainingError: a loss is not finite, or `vmap` does not support the network.

    >>> import numpy as np
    >>> import expunge
    >>> from expunge.training.ensemble import Member, train_ensemble
    >>> records = expunge.load_records("digits")
    >>> network = expunge.architecture("mlp", records, widths=(8,), normalise="none")
    >>> members = [Member(np.arange(50), seed=0), Member(np.arange(20, 60), seed=1)]
    >>> ensemble = train_ensemble(records, network, members, recipe=expunge.Recipe(epochs=1))
    >>> ensemble.predict_logits(records, np.arange(5)).shape
    torch.Size([2, 5, 10])
    """
    recipe, runtime = get_recipe(recipe), runtime or Runtime()
    if engine != "auto" and engine not in ENGINE_NAMES:
        raise ConfigError(f"unknown engine {engine!r}", where="engine", hint=unknown_name_hint(engine, ENGINE_NAMES))
    if recipe.select != "last":
        raise ConfigError(
            "an ensemble needs a recipe that selects the last epoch; this one selects the best",
            where=f"recipe {recipe.name}",
            hint="use dataclasses.replace(recipe, select='last'), or train each model with `train`",
        )
    if runtime.precision != "float32" and engine in ENGINES:
        raise ConfigError(
            f"the engine {engine} computes in float32, not in {runtime.precision}",
            where="precision",
            hint="use engine=single (or auto), which trains one model after the other",
        )
    if not members:
        raise DataError("an ensemble needs at least one member", where=label)
    for index, member in enumerate(members):
        if len(member.rows) == 0:
            raise DataError("the member has no records to train on", where=f"{label}: member {index}")
    masked = sum(member.mask is not None for member in members)
    if masked not in (0, len(members)):
        raise ConfigError(
            f"{masked} of {len(members)} members have a mask; either all members or none may have one", where=label
        )
    if is_custom(architecture.name):
        check_trainable(architecture.build(0), records.input_shape, records.classes)
    obstacle = ""
    if engine == "auto":
        engine, obstacle = _choose_engine(records, architecture, recipe, runtime, members[0])
    elif engine == "vmap":
        found = find_stacking_obstacle(records, architecture, members[0].rows, runtime)
        if found is not None:
            raise TrainingError(
                f"stacked training is not possible: {found}",
                where=architecture.name,
                hint="use engine=single (or auto, which then trains one by one)",
            )
    if obstacle:
        _LOG.warning("%s: the models are trained one by one, because %s", label, obstacle)
    stop = recipe.epochs if stop is None else stop
    snapshot_epochs = {recipe.rewind_epoch} if snapshots is None else set(snapshots)
    if engine == "single":
        start_time, total, seen = time.perf_counter(), (stop - start) * sum(len(m.rows) for m in members), 0

        def report(number: int, member_records: int, loss: float) -> None:
            nonlocal seen
            seen += member_records
            if progress is not None:
                progress(label, seen, total, {"member": number + 1, "loss": loss})

        final, stored, losses = train_each(
            records, architecture, members, recipe, runtime, start=start, stop=stop, snapshots=snapshot_epochs,
            label=label, report=report,
        )  # fmt: skip
        seconds = time.perf_counter() - start_time
        return Ensemble(architecture, tuple(members), recipe, final, stored, losses, seconds, engine, obstacle)
    trainer = ENGINES[engine](records, architecture, recipe, runtime)
    order = np.argsort([-len(member.rows) for member in members], kind="stable")
    total, seen = (stop - start) * sum(len(member.rows) for member in members), 0
    start_time = time.perf_counter()
    parts: list[Stacked] = []
    snapshot_parts: dict[int, list[Stacked]] = {epoch: [] for epoch in sorted(snapshot_epochs) if start < epoch <= stop}
    losses = np.zeros((len(members), max(0, stop - start)))
    for group in _split_chunks(order, members, chunk, equal=trainer.needs_equal_counts):
        chunk_members = [members[i] for i in group]
        stack = Chunk(
            rows=[m.rows for m in chunk_members],
            orders=[m.seeds["order"] for m in chunk_members],
            states=[_first_state(m, architecture) for m in chunk_members],
            masks=[m.mask for m in chunk_members],
        )
        step = trainer.begin(stack)
        for epoch in range(start, stop):
            losses[group, epoch - start] = step.run_epoch(epoch)
            diverged = [int(i) for i in group if not np.isfinite(losses[i, epoch - start])]
            if diverged:
                raise TrainingError(
                    f"the loss of epoch {epoch + 1} is {losses[diverged[0], epoch - start]}",
                    where=f"{label}: member {diverged[0]}",
                    hint="lower the learning rate, or check the records",
                )
            if epoch + 1 in snapshot_parts:
                snapshot_parts[epoch + 1].append(step.copy_states())
            seen += sum(len(m.rows) for m in chunk_members)
            if progress is not None:
                info = {"epoch": epoch + 1, "loss": float(losses[group, epoch - start].mean())}
                progress(label, seen, total, info)
        parts.append(step.copy_states())
    runtime.synchronise()
    inverse = np.argsort(np.concatenate(list(_split_chunks(order, members, chunk, equal=trainer.needs_equal_counts))))
    return Ensemble(
        architecture,
        tuple(members),
        recipe,
        _join(parts, inverse),
        {epoch: _join(found, inverse) for epoch, found in snapshot_parts.items()},
        losses,
        time.perf_counter() - start_time,
        engine,
    )


def _choose_engine(
    records: Records, architecture: Architecture, recipe: Recipe, runtime: Runtime, member: Member
) -> tuple[str, str]:
    """Choose the fastest engine that supports the run; return it, and what prevents a stacked one (or nothing)."""
    if runtime.precision != "float32":
        return "single", f"stacked training is in float32, not in {runtime.precision}"
    if can_use_products(architecture, records, recipe):
        return "products", ""
    convolutions = any(p.dim() > 2 for p in architecture.build(0).parameters())
    if convolutions and runtime.torch_device.type == "cpu":
        return "single", ""
    obstacle = find_stacking_obstacle(records, architecture, member.rows, runtime)
    return ("vmap", "") if obstacle is None else ("single", obstacle)


def _first_state(member: Member, architecture: Architecture) -> dict[str, torch.Tensor]:
    if member.start_from is not None:
        return member.start_from
    return plain_state(architecture.build(member.seeds["initial"]))


def _split_chunks(
    order: NDArray[np.int64], members: Sequence[Member], chunk: int, *, equal: bool
) -> list[NDArray[np.int64]]:
    """Split the member numbers into chunks, in descending order of records; `equal`: one number per chunk."""
    counts = np.asarray([len(members[i].rows) for i in order])
    edges = np.flatnonzero(np.diff(counts)) + 1 if equal else np.asarray([], dtype=np.int64)
    groups: list[NDArray[np.int64]] = []
    for part in np.split(order, edges):
        groups.extend(part[i : i + chunk] for i in range(0, len(part), max(1, chunk)))
    return groups


def _join(parts: list[Stacked], inverse: NDArray[np.int64]) -> Stacked:
    index = torch.from_numpy(inverse)
    return {name: torch.cat([part[name] for part in parts]).index_select(0, index) for name in parts[0]}
