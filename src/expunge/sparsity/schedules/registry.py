"""Registry of schedules, and the functions that they share.

The schedules are in `after_training` and `from_initialisation`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from expunge.core.errors import ConfigError, MaskError, unknown_name_hint
from expunge.core.mask import Mask
from expunge.core.seeds import derive, epoch_order
from expunge.core.show import repr_fields
from expunge.core.trained import Trained, clone_model
from expunge.data.batches import Batches
from expunge.data.records import Records
from expunge.models import Architecture
from expunge.sparsity.criteria.registry import Batch, Scores
from expunge.sparsity.masks.rule import Rule, make_mask
from expunge.training import checkpoint as checkpoints
from expunge.training.context import Context
from expunge.training.loop import BeforeEpoch, Fit, Steps, fit
from expunge.training.predict import make_validator
from expunge.training.progress import Progress
from expunge.training.recipes import get_recipe
from expunge.training.runtime import Runtime

EPOCHS = ("remaining", "full")


@dataclasses.dataclass(frozen=True)
class PruningContext:
    """The inputs of a schedule. The fields are the arguments of `prune`."""

    records: Records
    rule: Rule
    epochs: str
    score_records: int
    keep_weights: bool
    options: Mapping[str, Any]
    runtime: Runtime
    seed: int
    checkpoint: Path | None
    progress: Progress | None
    fits: list[Fit] = dataclasses.field(default_factory=list)

    __repr__ = repr_fields

    @property
    def sparsity(self) -> float:
        """The sparsity to reach."""
        assert self.rule.sparsity is not None
        return self.rule.sparsity

    def train_rows(self, trained: Trained) -> NDArray[np.int64]:
        """Rows of the training records; for an unlearned model, of the retain set only."""
        return self.records.rows(trained.split.retain)

    def scoring_batches(self, trained: Trained) -> Callable[[], Iterable[Batch]] | None:
        """The records that a data-driven criterion reads, in batches.

        They are chosen by hash of their ids, so removing a record does not change the choice among the others.
        """
        if self.score_records == 0:
            return None
        rows = self.train_rows(trained)
        chosen = rows[epoch_order(self.records.keys[rows], derive(self.seed, "score"), 0)[: self.score_records]]
        size = get_recipe(trained.provenance.recipe).batch_size
        return Batches(self.records, chosen, batch_size=size).in_order

    def make_mask(
        self,
        model: nn.Module,
        trained: Trained,
        *,
        sparsity: float | None = None,
        within: Mask | None = None,
        batch_statistics: bool = False,
    ) -> tuple[Mask, Scores]:
        """Make one mask by the rule, with the provenance of this run; see `expunge.sparsity.make_mask`."""
        recipe = get_recipe(trained.provenance.recipe)
        if any(p.device.type != "cpu" for p in model.parameters()):  # scores are computed where the records are
            model = clone_model(model).cpu()
        mask, scores = make_mask(
            model,
            self.rule,
            input_shape=self.records.input_shape,
            batches=self.scoring_batches(trained),
            batch_statistics=batch_statistics,
            seed=self.seed,
            within=within,
            sparsity=sparsity,
        )
        details = {
            **mask.provenance.details,
            "sparsity": self.sparsity,
            "rewind_epoch": recipe.rewind_epoch,
            "epochs": self.epochs,
            "options": dict(self.options),
            "score_records": self.score_records,
            "records": trained.split.base_hash,
        }
        return Mask(mask.kept, dataclasses.replace(mask.provenance, details=details)), scores


Run = Callable[[Trained, PruningContext], Trained]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A registered schedule: its name, the function that runs it, and its options with their defaults."""

    name: str
    run: Run
    options: Mapping[str, Any]

    __repr__ = repr_fields


_SCHEDULES: dict[str, Schedule] = {}


def register_schedule(name: str, **options: Any) -> Callable[[Run], Run]:
    """Register a function `(trained, context) -> pruned` under a name, with its options and their defaults."""

    def register(function: Run) -> Run:
        _SCHEDULES[name] = Schedule(name, function, options)
        return function

    return register


def schedule_names() -> list[str]:
    """Return the names of the registered schedules.

    Example:
        >>> from expunge.sparsity import schedule_names
        >>> schedule_names()
        ['at-init', 'gradual', 'imp', 'omp', 'one-shot', 'soft-filter']
    """
    return sorted(_SCHEDULES)


def get_schedule(name: str) -> Schedule:
    """Return a registered schedule.

    Raises:
        ConfigError: unknown schedule.
    """
    if not isinstance(name, str) or name not in _SCHEDULES:
        raise ConfigError(f"unknown schedule {name!r}", hint=unknown_name_hint(name, _SCHEDULES))
    return _SCHEDULES[name]


def train_masked(
    model: nn.Module,
    trained: Trained,
    context: PruningContext,
    *,
    mask: Mask | None,
    start: int,
    stop: int,
    order: int,
    label: str,
    before_epoch: BeforeEpoch | None = None,
    snapshots: tuple[int, ...] = (),
) -> Fit:
    """Train a model in place with the original's recipe on the training records of its split.

    Args:
        model: a network that the caller's code does not use; it is changed.
        trained: gives recipe and split.
        context: gives records, runtime, checkpoint and progress; the training is appended to `context.fits`.
        mask: weights that stay zero, or None.
        start: first epoch of the recipe.
        stop: epoch before which training ends.
        order: seed of the order of records.
        label: shown with the progress.
        before_epoch: called before every epoch; it may return a new mask.
        snapshots: epochs whose weights are copied.
    """
    recipe, runtime, records = get_recipe(trained.provenance.recipe), context.runtime, context.records
    runtime.place(model)
    result = fit(
        model,
        context.train_rows(trained),
        recipe,
        Context(records, runtime, order, context.checkpoint, context.progress),
        mask=mask,
        steps=Steps(before_epoch=before_epoch),
        start=start,
        stop=stop,
        snapshots=snapshots,
        validate=make_validator(records, records.rows(trained.split.validation), runtime),
        label=label,
    )
    context.fits.append(result)
    return result


def finish(
    trained: Trained,
    context: PruningContext,
    model: nn.Module,
    mask: Mask,
    scores: Scores | None,
    line: str,
    *,
    schedule: str,
    scored: Mapping[str, torch.Tensor] | None = None,
    seeds: Mapping[str, int] | None = None,
) -> Trained:
    """Build the pruned model from a network and its mask.

    Args:
        trained: the dense model.
        context: the inputs of the schedule.
        model: the pruned network.
        mask: its mask.
        scores: the final scores, stored in the state `pruning_scores`.
        line: appended to the entry in the history of the model.
        schedule: recorded in the mask.
        scored: all tensors at the time when the final scores were computed; stored in the state `pruning_weights` if
            the caller asked for them.
        seeds: recorded in the provenance.
    """
    state = dict(trained.state)
    if scores is not None:
        state["pruning_scores"] = scores
    if scored is not None and context.keep_weights:
        state["pruning_weights"] = dict(scored)
    provenance = dataclasses.replace(
        trained.provenance.add_history(f"pruned ({schedule}) to {100 * mask.sparsity:.2f} % sparsity{line}"),
        seeds={**trained.provenance.seeds, "pruning": context.seed, **(seeds or {})},
    )
    mask = Mask(mask.kept, dataclasses.replace(mask.provenance, schedule=schedule))
    return Trained(context.runtime.release(model), mask, trained.split, provenance, state)


def get_rewind_state(trained: Trained) -> Mapping[str, torch.Tensor]:
    """Return the rewind checkpoint of a trained model.

    Raises:
        MaskError: there is none.
    """
    rewind = trained.state.get("rewind_checkpoint")
    if rewind is None:
        raise MaskError(
            "the trained model has no rewind checkpoint",
            hint="train it with expunge, which stores one (recipe field `rewind`)",
        )
    return rewind


def build_initial_model(trained: Trained) -> nn.Module:
    """Build the network with the initial weights that training started from, regenerated from their seed.

    Raises:
        MaskError: the seed is not recorded.
    """
    seeds = trained.provenance.seeds
    lacking = [name for name in ("initial", "order") if name not in seeds]
    if lacking:
        raise MaskError(
            "the seeds of the initial weights and of the order of records are not both recorded, so training cannot be "
            "repeated from the start",
            where=f"provenance.seeds.{lacking[0]}",
            hint="train the model with expunge, or store its initial weights",
        )
    return Architecture.from_json(trained.provenance.architecture).build(seeds["initial"])


def copy_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copy all parameters and buffers to the CPU."""
    return checkpoints.copy_state(model)


def get_epoch_range(trained: Trained, context: PruningContext) -> tuple[int, int]:
    """Return the epoch to rewind to and the epoch before which training with the mask ends."""
    recipe = get_recipe(trained.provenance.recipe)
    start = recipe.rewind_epoch
    return start, recipe.epochs + (start if context.epochs == "full" else 0)


def refuse_patterns(context: PruningContext, schedule: str) -> None:
    """Raise ConfigError if the granularity is a pattern, for schedules that need several sparsities."""
    if ":" in context.rule.granularity:
        raise ConfigError(
            f"the pattern {context.rule.granularity} has one sparsity, but {schedule} prunes step by step",
            where=f"schedule {schedule}",
            hint="use omp, one-shot or at-init",
        )
