"""Training from initial weights as an original was trained, on other records: for retraining and replay."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

import torch
from torch import nn

from expunge.core import early_checkpoints
from expunge.core.hashing import hash_tensors
from expunge.core.mask import Mask
from expunge.core.reading.file_names import add_to_name
from expunge.core.show import plural
from expunge.core.split import Split, as_ids
from expunge.core.trained import Provenance, Trained
from expunge.models import Architecture
from expunge.sparsity import get_schedule, pruning_of, recorded_schedule, run_pruning
from expunge.training.checkpoint import load_state
from expunge.training.context import Context
from expunge.training.loop import Fit, Steps, fit
from expunge.training.predict import make_validator
from expunge.training.recipes import Recipe, get_recipe

from .start import Start


@dataclasses.dataclass(frozen=True, eq=False)
class Retraining:
    """The inputs of one training from initial weights, as the original was trained, on other records.

    Attributes:
        trained: the original.
        split: its retain set is trained on.
        context: records, runtime, checkpoint, progress.
        seeds: `initial` and `order`, and `pruning_order` of a model that was rewound.
        start: where training starts, with frozen parameters of the original.
        label: name of the run in progress and errors.
        initial: initial weights that replace those of the seed (frozen ones excepted), by name.
    """

    trained: Trained
    split: Split
    context: Context
    seeds: dict[str, int]
    start: Start
    label: str = "Retrain"
    initial: Mapping[str, torch.Tensor] = dataclasses.field(default_factory=dict)

    def build_start(self) -> nn.Module:
        """Build the network before training, with the normalisation statistics of D_r."""
        model = self.start.build(self.make_architecture(), self.seeds["initial"])
        load_state(model, {name: value for name, value in self.initial.items() if name not in self.start.frozen})
        return model

    def make_steps(self, order: int | None = None) -> Steps:
        """Plain steps, in the recorded order of the original if the run has it (`Context.order`).

        Args:
            order: seed of the order, if it is not that of the dense training.
        """
        original = self.trained.provenance.seeds.get("order")
        return Steps(
            order=self.context.order if (self.seeds["order"] if order is None else order) == original else None
        )

    def train_prefix(
        self, epochs: int, *, recipe: Recipe | None = None, keep: Collection[int] = (), mask: Mask | None = None,
        part: str = "prefix",
    ) -> Fit:  # fmt: skip
        """Train the first epochs of the recipe only; the last epoch is not compared with earlier ones.

        Args:
            epochs: number of epochs, at least 1.
            recipe: instead of the original's.
            keep: further epochs, below `epochs`, whose tensors are snapshots of the result.
            mask: weights that stay zero, or None.
            part: which run this is; each resumes by itself.

        Returns:
            The run; its snapshots are all tensors after `epochs` epochs, and after those of `keep`.
        """
        records, runtime = self.context.records, self.context.runtime
        return fit(
            runtime.place(self.build_start()),
            records.rows(self.split.retain),
            get_recipe(self.trained.provenance.recipe) if recipe is None else recipe,
            self.context.for_part(part, seed=self.seeds["order"]),
            mask=mask,
            steps=self.make_steps(),
            stop=epochs,
            snapshots={*keep, epochs},
            label=f"{self.label}, {part}",
        )

    def train_dense(self, *, keep: Collection[int] = (), part: str = "dense") -> tuple[nn.Module, Fit]:
        """Train the whole recipe without a mask; the epoch is selected as the recipe says.

        Args:
            keep: epochs whose tensors are snapshots of the result.
            part: which run this is; each resumes by itself.

        Returns:
            The network, and the run.
        """
        records, runtime = self.context.records, self.context.runtime
        model = runtime.place(self.build_start())
        result = fit(
            model,
            records.rows(self.split.retain),
            get_recipe(self.trained.provenance.recipe),
            self.context.for_part(part, seed=self.seeds["order"]),
            steps=self.make_steps(),
            snapshots=keep,
            validate=make_validator(records, records.rows(self.split.validation), runtime),
            label=f"{self.label}, {part}",
        )
        return runtime.release(model), result

    def make_architecture(self) -> Architecture:
        """The architecture, with normalisation statistics of the records that are trained on."""
        architecture = Architecture.from_json(self.trained.provenance.architecture)
        return architecture.remeasure_normalisation(self.context.records, self.split.retain)

    def _train(
        self,
        mask: Mask | None,
        *,
        start: int = 0,
        stop: int | None = None,
        order: int | None = None,
        begin_from: Trained | None = None,
        stage: str = "",
    ) -> tuple[Trained, Fit]:
        """Train on D_r from epoch `start`, from the initial weights or from an earlier stage."""
        records, runtime = self.context.records, self.context.runtime
        recipe = get_recipe(self.trained.provenance.recipe)
        architecture = self.make_architecture()
        start_model = self.build_start() if begin_from is None else begin_from.model
        model = runtime.place(start_model)
        snapshots = {recipe.rewind_epoch} if mask is None and self.trained.mask is not None else set()
        kept = recipe.kept_epochs if mask is None and stop is None else ()
        path = self.context.checkpoint
        context = dataclasses.replace(
            self.context,
            seed=self.seeds["order"] if order is None else order,
            checkpoint=None if path is None else add_to_name(path, stage),
        )
        result = fit(
            model,
            records.rows(self.split.retain),
            recipe,
            context,
            mask=mask,
            steps=self.make_steps(order),
            start=start,
            stop=stop,
            snapshots={*snapshots, *kept},
            validate=make_validator(records, records.rows(self.split.validation), runtime),
            label=f"{self.label}{stage.replace('.', ', ')}",
        )
        provenance = self.trained.provenance.add_history(
            f"retrained on {plural(len(self.split.retain), 'record')} for {plural(len(result.history), 'epoch')}"
        )
        provenance = self._update_provenance(provenance, architecture)
        described = early_checkpoints.describe_checkpoint(
            self.split.retain, recipe.to_json(), self.seeds, provenance.initial_weights
        )
        state: dict[str, Mapping[str, torch.Tensor]] = {}
        if snapshots & result.snapshots.keys():  # a recipe without epochs has none
            state["rewind_checkpoint"] = result.snapshots[recipe.rewind_epoch]
        if kept:
            state[early_checkpoints.STATE] = early_checkpoints.pack_checkpoints({e: result.snapshots[e] for e in kept})
        if kept and recipe.keep_moments:
            state[early_checkpoints.MOMENTS] = early_checkpoints.pack_checkpoints({e: result.moments[e] for e in kept})
        return Trained(
            model=runtime.release(model),
            mask=mask,
            split=self.split,
            provenance=dataclasses.replace(provenance, checkpoints={str(epoch): described for epoch in kept}),
            state=state,
        ), result

    def _update_provenance(self, provenance: Provenance, architecture: Architecture) -> Provenance:
        return dataclasses.replace(
            provenance,
            architecture=architecture.to_json(),
            seeds=self.seeds,
            weights_from="training",
            initial_weights=hash_tensors(
                dict(self.start.build(architecture, self.seeds["initial"]).named_parameters())
            ),
        )

    def _build_untrained(self) -> Trained:
        """Build a model with the initial weights and the normalisation statistics of D_r."""
        architecture = self.make_architecture()
        provenance = self._update_provenance(self.trained.provenance.add_history("initial weights"), architecture)
        return Trained(self.build_start(), None, self.split, provenance, {})

    def train_with_mask(self, mask: Mask | None) -> tuple[Trained, list[Fit]]:
        """Train from the initial weights, with the mask from the first step on."""
        after, result = self._train(mask)
        return after, [result]

    def train_rewound(self, mask: Mask) -> tuple[Trained, list[Fit]]:
        """Train dense up to the rewind epoch, then with the mask for as many epochs as the original."""
        recipe = get_recipe(self.trained.provenance.recipe)
        start = recipe.rewind_epoch
        stop = recipe.epochs + (start if mask.provenance.details.get("epochs") == "full" else 0)
        schedule = recorded_schedule(mask)
        if schedule is not None and schedule.scores_initial_weights:  # the original had its mask from the first step on
            return self.train_with_mask(mask)
        early, first = self._train(None, stop=start, stage=".dense")
        if first.best_epoch is not None:  # the rewind point is the last epoch, not the best
            load_state(early.model, early.state["rewind_checkpoint"])
        order = self.seeds.get("pruning_order", self.seeds["order"])
        after, second = self._train(mask, start=start, stop=stop, order=order, begin_from=early, stage=".masked")
        return dataclasses.replace(after, state={}), [first, second]

    def train_and_prune(self, mask: Mask, seed: int) -> tuple[Trained, list[Fit]]:
        """Train dense on D_r, unless the schedule starts at initialisation, and prune as the original was pruned."""
        pruning = pruning_of(
            mask,
            self.trained.model,
            self.context.records.input_shape,
            keep_weights="pruning_weights" in self.trained.state,
        )
        fits: list[Fit] = []
        if get_schedule(pruning.schedule).starts_from_initial_weights:
            dense = self._build_untrained()
        else:
            dense, first = self._train(None, stage=".dense")
            fits.append(first)
        pruned = run_pruning(
            dataclasses.replace(dense, split=dataclasses.replace(self.split, forget=as_ids(()))),
            pruning,
            self.context.for_part("pruned", seed=seed),
        )
        return dataclasses.replace(pruned.trained, split=self.split), [*fits, *pruned.fits]
