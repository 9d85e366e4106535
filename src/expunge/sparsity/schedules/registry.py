"""What every schedule is told, what they share, and their registry. The schedules are in `rewinding` and `during`."""

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
from expunge.core.trained import Trained, clone_model
from expunge.data.batches import Batches
from expunge.data.records import Records
from expunge.models import Architecture
from expunge.sparsity.criteria.registry import Batch, Scores
from expunge.sparsity.masks.rule import Rule, make_mask
from expunge.training import checkpoint as checkpoints
from expunge.training.loop import BeforeEpoch, Fit, fit
from expunge.training.predict import validator
from expunge.training.progress import Progress
from expunge.training.recipes import recipe as as_recipe
from expunge.training.runtime import Runtime

EPOCHS = ("remaining", "full")


@dataclasses.dataclass(frozen=True)
class Pruning:
    """What every schedule is told. The fields are those of `prune`."""

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

    @property
    def sparsity(self) -> float:
        """The sparsity to reach."""
        assert self.rule.sparsity is not None
        return self.rule.sparsity

    def train_rows(self, trained: Trained) -> NDArray[np.int64]:
        """Rows of the training records; of an unlearned model those that it still may know."""
        return self.records.rows(trained.split.retain)

    def batches_to_score(self, trained: Trained) -> Callable[[], Iterable[Batch]] | None:
        """The records a data-driven criterion reads: chosen by hash, so that others' removal does not change them."""
        if self.score_records == 0:
            return None
        rows = self.train_rows(trained)
        chosen = rows[epoch_order(self.records.keys[rows], derive(self.seed, "score"), 0)[: self.score_records]]
        size = as_recipe(trained.provenance.recipe).batch_size
        return Batches(self.records, chosen, batch_size=size).in_order

    def mask(
        self,
        model: nn.Module,
        trained: Trained,
        *,
        sparsity: float | None = None,
        within: Mask | None = None,
        batch_statistics: bool = False,
    ) -> tuple[Mask, Scores]:
        """One mask of the rule, with the provenance of this run."""
        recipe = as_recipe(trained.provenance.recipe)
        if any(p.device.type != "cpu" for p in model.parameters()):  # scores are taken where the records are
            model = clone_model(model).cpu()
        mask, scores = make_mask(
            model,
            self.rule,
            input_shape=self.records.input_shape,
            batches=self.batches_to_score(trained),
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
        return Mask(mask.alive, dataclasses.replace(mask.provenance, details=details)), scores


Run = Callable[[Trained, Pruning], Trained]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A registered schedule: its name, its options with defaults, and the function that runs it."""

    name: str
    run: Run
    options: Mapping[str, Any]


_SCHEDULES: dict[str, Schedule] = {}


def register_schedule(name: str, **options: Any) -> Callable[[Run], Run]:
    """Register a function `(trained, pruning) -> pruned` under a name, with its options and their defaults."""

    def keep(function: Run) -> Run:
        _SCHEDULES[name] = Schedule(name, function, options)
        return function

    return keep


def schedule_names() -> list[str]:
    """The registered schedules."""
    return sorted(_SCHEDULES)


def get_schedule(name: str) -> Schedule:
    """A registered schedule.

    Raises:
        ConfigError: unknown schedule.
    """
    if not isinstance(name, str) or name not in _SCHEDULES:
        raise ConfigError(f"unknown schedule {name!r}", hint=unknown_name_hint(name, _SCHEDULES))
    return _SCHEDULES[name]


def train_masked(
    model: nn.Module,
    trained: Trained,
    pruning: Pruning,
    *,
    mask: Mask | None,
    start: int,
    stop: int,
    order: int,
    label: str,
    before_epoch: BeforeEpoch | None = None,
    snapshots: tuple[int, ...] = (),
) -> Fit:
    """Train a model that expunge owns, in place, with the original's recipe on the records of its split."""
    recipe, runtime, records = as_recipe(trained.provenance.recipe), pruning.runtime, pruning.records
    runtime.place(model)
    batches = Batches(
        records,
        pruning.train_rows(trained),
        batch_size=recipe.batch_size,
        device=runtime.torch_device,
        augment=recipe.augment,
        channels_last=runtime.channels_last,
    )
    result = fit(
        model,
        batches,
        recipe,
        runtime=runtime,
        seed=order,
        mask=mask,
        start=start,
        stop=stop,
        before_epoch=before_epoch,
        snapshots=snapshots,
        validate=validator(records, records.rows(trained.split.validation), runtime),
        checkpoint_path=pruning.checkpoint,
        progress=pruning.progress,
        label=label,
    )
    pruning.fits.append(result)
    return result


def finished(
    trained: Trained,
    pruning: Pruning,
    model: nn.Module,
    mask: Mask,
    scores: Scores | None,
    line: str,
    *,
    schedule: str,
    scored: Mapping[str, torch.Tensor] | None = None,
    seeds: Mapping[str, int] | None = None,
) -> Trained:
    """The pruned model with its mask, what is kept of the pruning, and its provenance.

    `scored`: all tensors at the moment when the final scores were taken, kept where the caller asked for them.
    """
    state = dict(trained.state)
    if scores is not None:
        state["pruning_scores"] = scores
    if scored is not None and pruning.keep_weights:
        state["pruning_weights"] = dict(scored)
    provenance = dataclasses.replace(
        trained.provenance.then(f"pruned ({schedule}) to {100 * mask.sparsity:.2f} % sparsity{line}"),
        seeds={**trained.provenance.seeds, "pruning": pruning.seed, **(seeds or {})},
    )
    mask = Mask(mask.alive, dataclasses.replace(mask.provenance, schedule=schedule))
    return Trained(pruning.runtime.release(model), mask, trained.split, provenance, state)


def rewind_state(trained: Trained) -> Mapping[str, torch.Tensor]:
    rewind = trained.state.get("rewind_checkpoint")
    if rewind is None:
        raise MaskError(
            "the trained model has no rewind checkpoint",
            hint="train it with expunge, which keeps one (recipe field `rewind`)",
        )
    return rewind


def initial_model(trained: Trained) -> nn.Module:
    """The network with the initial weights that training started from, regenerated from their seed.

    Raises:
        MaskError: the seed is not recorded.
    """
    seeds = trained.provenance.seeds
    lacking = [name for name in ("initial", "order") if name not in seeds]
    if lacking:
        raise MaskError(
            "the seeds of the initial weights and of the order of records are not both recorded, so that training "
            "cannot start again",
            where=f"provenance.seeds.{lacking[0]}",
            hint="train the model with expunge, or store its initial weights",
        )
    return Architecture.from_json(trained.provenance.architecture).build(seeds["initial"])


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of all parameters and buffers on the CPU."""
    return checkpoints.copied_state(model)


def last_epoch(trained: Trained, pruning: Pruning) -> tuple[int, int]:
    recipe = as_recipe(trained.provenance.recipe)
    start = recipe.rewind_epoch
    return start, recipe.epochs + (start if pruning.epochs == "full" else 0)


def refuse_patterns(pruning: Pruning, schedule: str) -> None:
    if ":" in pruning.rule.granularity:
        raise ConfigError(
            f"the pattern {pruning.rule.granularity} has one sparsity; {schedule} prunes step by step",
            where=f"schedule {schedule}",
            hint="use omp, one-shot or at-init",
        )
