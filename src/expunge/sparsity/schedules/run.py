"""`PruningRun`: what a schedule gets, and the parts that schedules share. `Pruned`: what a schedule returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from expunge.core import early_checkpoints
from expunge.core.errors import MaskError
from expunge.core.hashing import hash_tensors
from expunge.core.mask import Mask
from expunge.core.seeds import derive, epoch_order
from expunge.core.show import repr_fields
from expunge.core.trained import Provenance, Trained, clone_model
from expunge.data.batches import Batches
from expunge.models import Architecture
from expunge.sparsity.criteria.registry import Batch, Scores, get_criterion
from expunge.sparsity.masks.granularity import get_granularity
from expunge.sparsity.masks.rule import make_mask
from expunge.training import checkpoint as checkpoints
from expunge.training.batchnorm import join_single_records
from expunge.training.context import Context
from expunge.training.loop import BeforeEpoch, Fit, Steps, fit
from expunge.training.predict import make_validator
from expunge.training.recipes import Recipe, get_recipe

from .pruning import Pruning


@dataclasses.dataclass(frozen=True, eq=False)
class Pruned:
    """The result of a schedule.

    Attributes:
        trained: the sparse model.
        fits: every training of the schedule, for its cost.
    """

    trained: Trained
    fits: tuple[Fit, ...]

    __repr__ = repr_fields


@dataclasses.dataclass(frozen=True, eq=False)
class PruningRun:
    """One run of a schedule: its inputs, and the trainings so far.

    Attributes:
        trained: the dense model; not modified.
        pruning: how it is pruned.
        context: records, runtime, seed, checkpoint, progress. The seed seeds the order of records of the training with
            the mask, and criteria that draw random numbers.
        fits: `train` appends to it.
    """

    trained: Trained
    pruning: Pruning
    context: Context
    fits: list[Fit] = dataclasses.field(default_factory=list)

    __repr__ = repr_fields

    @property
    def recipe(self) -> Recipe:
        """The recipe of the dense model."""
        return get_recipe(self.trained.provenance.recipe)

    @property
    def sparsity(self) -> float:
        """The sparsity to reach."""
        assert self.pruning.sparsity is not None
        return self.pruning.sparsity

    @property
    def train_rows(self) -> NDArray[np.int64]:
        """Rows of the training records; for an unlearned model, of the retain set only."""
        return self.context.records.rows(self.trained.split.retain)

    @property
    def score_records(self) -> int:
        """How many training records the criterion reads: 0 if it reads none."""
        return self.pruning.score_records if get_criterion(self.pruning.criterion).needs_data else 0

    def make_scoring_batches(self) -> Callable[[], Iterable[Batch]] | None:
        """The records that a data-driven criterion reads, in batches.

        They are chosen by hash of their ids, so removing a record does not change the choice among the others.
        """
        if self.score_records == 0:
            return None
        records, rows = self.context.records, self.train_rows
        order = epoch_order(records.keys[rows], derive(self.context.seed, "score"), 0)
        batches = Batches(records, rows[order[: self.score_records]], batch_size=self.recipe.batch_size)
        return join_single_records(self.trained.model, batches).in_order

    def make_mask(
        self,
        model: nn.Module,
        *,
        sparsity: float | None = None,
        within: Mask | None = None,
        batch_statistics: bool = False,
    ) -> tuple[Mask, Scores]:
        """Make one mask by the rule, with the provenance of this run; see `expunge.sparsity.make_mask`."""
        if any(p.device.type != "cpu" for p in model.parameters()):  # scores are computed where the records are
            model = clone_model(model).cpu()
        mask, scores = make_mask(
            model,
            self.pruning.rule,
            input_shape=self.context.records.input_shape,
            batches=self.make_scoring_batches(),
            batch_statistics=batch_statistics,
            seed=self.context.seed,
            within=within,
            sparsity=sparsity,
        )
        details = {
            **mask.provenance.details,
            "sparsity": self.sparsity,
            "rewind_epoch": self.recipe.rewind_epoch,
            "epochs": self.pruning.epochs,
            "options": dict(self.pruning.options),
            "score_records": self.score_records,
            "records": self.trained.split.base_hash,
        }
        return Mask(mask.kept, dataclasses.replace(mask.provenance, details=details)), scores

    def read_mask(self, model: nn.Module, like: Mask) -> Mask:
        """Read from the values of a sparse network which weights are kept so far, for the tensors of another mask."""
        granularity = get_granularity(self.pruning.granularity)
        kept = granularity.read_kept(model, list(like.kept), self.pruning.layers, self.context.records.input_shape)
        return Mask(kept, like.provenance)

    def train(
        self,
        model: nn.Module,
        *,
        order: int,
        label: str,
        mask: Mask | None = None,
        start: int = 0,
        stop: int | None = None,
        recipe: Recipe | None = None,
        before_epoch: BeforeEpoch | None = None,
        part: str = "",
        snapshots: Collection[int] = (),
    ) -> Fit:
        """Train a network in place on the training records of the split.

        Args:
            model: a network that the caller's code does not use; it is changed.
            order: seed of the order of records.
            label: shown with the progress.
            mask: weights that stay zero, or None.
            start: first epoch of the recipe.
            stop: epoch before which training ends; None: the end of the recipe.
            recipe: instead of the recipe of the dense model.
            before_epoch: called before every epoch; it may return a new mask.
            part: of a schedule that trains more than once: which training this is; each resumes by itself.
            snapshots: epochs after which all tensors are copied (`Fit.snapshots`).
        """
        context = dataclasses.replace(self.context, seed=order)
        context = context.for_part(part, seed=order) if part else context
        records, runtime, recipe = context.records, context.runtime, recipe or self.recipe
        runtime.place(model)
        result = fit(
            model,
            self.train_rows,
            recipe,
            context,
            mask=mask,
            steps=Steps(before_epoch=before_epoch),
            start=start,
            stop=recipe.epochs if stop is None else stop,
            snapshots=snapshots,
            validate=make_validator(records, records.rows(self.trained.split.validation), runtime),
            label=label,
        )
        self.fits.append(result)
        return result

    def finish(
        self,
        model: nn.Module,
        mask: Mask,
        scores: Scores | None,
        line: str = "",
        *,
        scored: Mapping[str, torch.Tensor] | None = None,
        seeds: Mapping[str, int] | None = None,
        early: Mapping[int, Mapping[str, torch.Tensor]] | None = None,
    ) -> Pruned:
        """Build the result from a network and its mask.

        Args:
            model: the pruned network.
            mask: its mask.
            scores: the final scores, stored in the state `pruning_scores`.
            line: appended to the entry in the history of the model.
            scored: all tensors at the time when the final scores were computed (`copy_weights`); stored in the state
                `pruning_weights` if the caller asked for them.
            seeds: recorded in the provenance.
            early: all tensors after some of the first epochs of a training that had the mask from its first step on;
                they replace the state `early_checkpoints`, which is of the dense training. None: that stays.
        """
        trained, schedule = self.trained, self.pruning.schedule
        state = dict(trained.state)
        if scores is not None:
            state["pruning_scores"] = scores
        if scored is not None and self.pruning.keep_weights:
            state["pruning_weights"] = dict(scored)
        provenance = dataclasses.replace(
            trained.provenance.add_history(f"pruned ({schedule}) to {100 * mask.sparsity:.2f} % sparsity{line}"),
            seeds={**trained.provenance.seeds, "pruning": self.context.seed, **(seeds or {})},
        )
        mask = Mask(mask.kept, dataclasses.replace(mask.provenance, schedule=schedule))
        if early is not None:
            provenance = self._store_early(early, mask, provenance, state)
        released = self.context.runtime.release(model)
        return Pruned(Trained(released, mask, trained.split, provenance, state), tuple(self.fits))

    def _store_early(
        self,
        early: Mapping[int, Mapping[str, torch.Tensor]],
        mask: Mask,
        provenance: Provenance,
        state: dict[str, Mapping[str, torch.Tensor]],
    ) -> Provenance:
        """Replace the early checkpoints in `state`; return the provenance that states what they have seen."""
        for name in (early_checkpoints.STATE, early_checkpoints.MOMENTS):
            state.pop(name, None)
        if not early:
            return dataclasses.replace(provenance, checkpoints={})
        state[early_checkpoints.STATE] = early_checkpoints.pack_checkpoints(early)
        initial = hash_tensors(dict(self.build_initial_model().named_parameters()))
        described = early_checkpoints.describe_checkpoint(
            self.trained.split.retain, self.recipe.to_json(), provenance.seeds, initial, mask
        )
        return dataclasses.replace(provenance, checkpoints={str(epoch): described for epoch in sorted(early)})

    def copy_model(self) -> nn.Module:
        """Copy the network of the dense model."""
        return clone_model(self.trained.model)

    def build_rewound_model(self) -> nn.Module:
        """Build the network with all tensors of the rewind checkpoint, BatchNorm buffers and classifier included.

        Raises:
            MaskError: there is none.
        """
        rewind = self.trained.state.get("rewind_checkpoint")
        if rewind is None:
            raise MaskError(
                "the trained model has no rewind checkpoint",
                hint="train it with expunge, which stores one (recipe field `rewind`)",
            )
        model = self.copy_model()
        checkpoints.load_state(model, rewind)
        return model

    def find_epoch_range(self) -> tuple[int, int]:
        """The epoch to rewind to, and the epoch before which training with the mask ends."""
        recipe = self.recipe
        start = recipe.rewind_epoch
        return start, recipe.epochs + (start if self.pruning.epochs == "full" else 0)

    def build_initial_model(self) -> nn.Module:
        """Build the network with the initial weights that training started from, regenerated from their seed.

        Raises:
            MaskError: the seed is not recorded.
        """
        provenance = self.trained.provenance
        lacking = [name for name in ("initial", "order") if name not in provenance.seeds]
        if lacking:
            raise MaskError(
                "the seeds of the initial weights and of the order of records are not both recorded, so training "
                "cannot be repeated from the start",
                where=f"provenance.seeds.{lacking[0]}",
                hint="train the model with expunge, or store its initial weights",
            )
        return Architecture.from_json(provenance.architecture).build(provenance.seeds["initial"])

    @property
    def order(self) -> int:
        """The seed of the order of records of the dense model's training."""
        return self.trained.provenance.seeds["order"]


def copy_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copy all parameters and buffers to the CPU."""
    return checkpoints.copy_state(model)
