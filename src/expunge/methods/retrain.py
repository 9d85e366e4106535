"""Retrain: training on the retain set only. It is the reference for all other methods."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from torch import nn

from expunge.core.errors import MethodError, unknown_name_hint
from expunge.core.hashing import hash_tensors
from expunge.core.mask import Mask
from expunge.core.split import Split, as_ids
from expunge.core.trained import Provenance, Trained
from expunge.models import Architecture
from expunge.sparsity import get_schedule, pruning_of, recorded_schedule, run_pruning
from expunge.training.checkpoint import load_state
from expunge.training.context import Context
from expunge.training.loop import Fit, fit, order_seed
from expunge.training.predict import make_validator
from expunge.training.recipes import get_recipe

from .base import Method
from .registry import register_method
from .start import Start, check_retrained, check_start, find_start, strip_patches
from .task import Task

#: Treatment of the mask of a sparse model.
MASKS: dict[str, str] = {
    "same": "train with the original's mask from the initial weights on ([Jia2023])",
    "rewind": "train dense on D_r up to the rewind epoch, then with the original's mask, as the original was trained",
    "re-prune": "train dense on D_r, then prune as the original was pruned ([Xiao2025])",
}
#: Seeds of the initial weights and of the order of records.
SEEDS: dict[str, str] = {
    "original": "those of the original model",
    "order": "the original's initial weights, another order",
    "new": "other initial weights and another order",
}


@register_method(
    "Retrain", guarantee="exact", citation="[Jia2023], the reference of all tables; re-prune: [Xiao2025]", corrects=True
)
@dataclasses.dataclass(frozen=True)
class Retrain(Method):
    """Train on D_r from scratch, with the original's recipe, initial weights and order of records. A pruned model keeps
    the original's mask by default; its outcome is then only `empirical`.

    For a dense model, the result is exactly a model trained without D_f. For a sparse model, with `mask="same"` or
    `"rewind"` the result has the original's mask, which depends on D_f, so the guarantee of the outcome is only
    `empirical`. With `mask="re-prune"` the mask is recomputed from D_r, with the original's criterion, scope, schedule
    and seeds, and the guarantee is `exact`. Normalisation statistics that were measured on training records are
    recomputed from D_r.

    Frozen parameters (`requires_grad` off) keep the original's values, whatever the seeds. If parameters come from
    neither a seed nor a declared start (`model.initial`), the guarantee is `empirical`; with a declared start it is
    `exact` relative to that start. A network that starts from the trained weights is refused, as is a retraining that
    changes nothing.

    A correction is retrained on all training records, those of the request with their new values. A rerun with other
    seeds measures the noise floor.

    Attributes:
        seeds: `original` (the original's initial weights and order of records), `order` (the original's initial
            weights, and an order drawn from the context's seed), or `new` (both drawn from the context's seed, as
            `train` does).
        mask: treatment of the mask of a sparse model: `same` (train with it from the initial weights on), `rewind`
            (train dense up to the rewind epoch, then with the mask), or `re-prune` (train dense, then prune as the
            original was pruned).
    """

    seeds: str = "original"
    mask: str = "same"

    def __post_init__(self) -> None:
        if self.seeds not in SEEDS:
            raise MethodError(
                f"unknown seeds {self.seeds!r}", where="Retrain.seeds", hint=unknown_name_hint(self.seeds, SEEDS)
            )
        if self.mask not in MASKS:
            raise MethodError(
                f"unknown treatment of the mask {self.mask!r}",
                where="Retrain.mask",
                hint=unknown_name_hint(self.mask, MASKS),
            )

    def check_state(self, trained: Trained) -> None:
        """See `Method.check_state`.

        Raises:
            MethodError: the network starts from the weights of the trained model.
        """
        check_start(trained)

    def unlearn(self, task: Task) -> Trained:
        """See `Method.unlearn`.

        Raises:
            MethodError: the retraining changed nothing, or started from the trained weights; or the recipe or the seeds
                of the original are not recorded.
            MaskError: with `re-prune`, the mask's provenance does not record how it was made.
        """
        trained, context = strip_patches(task.trained), task.context
        provenance = trained.provenance
        if not provenance.recipe:
            raise MethodError(
                "the recipe of the original model is not recorded, so it cannot be retrained",
                where="Retrain",
                hint="train the original with expunge, or record a recipe in its provenance",
            )
        seeds = dict(provenance.seeds)
        new_seeds = {"initial": context.seed, "order": order_seed(context.seed), "training": context.seed}
        if self.seeds == "new":
            seeds = new_seeds
        elif not ({"initial"} if self.seeds == "order" else {"initial", "order"}) <= set(seeds):
            raise MethodError(
                "the seeds of the original's initial weights and order of records are not recorded",
                where="Retrain",
                hint="set seeds=new to draw new ones from the seed of the method",
            )
        elif self.seeds == "order":
            seeds = {**new_seeds, "initial": seeds["initial"]}
        start = find_start(trained, seeds["initial"])
        task.thawed |= start.thawed
        retraining = _Retraining(trained, task.split, context, seeds, start)
        mask = trained.mask
        if mask is None or self.mask == "same":
            after, fits = retraining.train_with_mask(mask)
        elif self.mask == "rewind":
            after, fits = retraining.train_rewound(mask)
        else:
            pruning_seed = seeds.get("pruning", 0) if self.seeds == "original" else context.seed
            after, fits = retraining.train_and_prune(mask, pruning_seed)
        for result in fits:
            task.count(result)
        check_retrained(trained, retraining.build_start(), after)
        exact = mask is None or self.mask == "re-prune"
        task.guarantee = "exact" if exact and start.independent else "empirical"
        unchanged = {"mask"} if not exact else set()
        unchanged |= {"weights"} if start.frozen else set()
        task.recomputed |= {name for name in after.list_influence_state() if name not in unchanged}
        if start.note:
            *earlier, last = after.provenance.history
            provenance = dataclasses.replace(after.provenance, history=(*earlier, last + start.note))
            after = dataclasses.replace(after, provenance=provenance)
        return after


@dataclasses.dataclass(frozen=True, eq=False)
class _Retraining:
    """The inputs of one retraining: the original, the split after the request, the context, the seeds."""

    trained: Trained
    split: Split
    context: Context
    seeds: dict[str, int]
    start: Start

    def build_start(self) -> nn.Module:
        """Build the network before training, with the normalisation statistics of D_r."""
        return self.start.build(self._make_architecture(), self.seeds["initial"])

    def _make_architecture(self) -> Architecture:
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
        architecture = self._make_architecture()
        start_model = self.build_start() if begin_from is None else begin_from.model
        model = runtime.place(start_model)
        snapshots = {recipe.rewind_epoch} if mask is None and self.trained.mask is not None else set()
        path = self.context.checkpoint
        context = dataclasses.replace(
            self.context,
            seed=self.seeds["order"] if order is None else order,
            checkpoint=None if path is None else Path(path).with_name(Path(path).name + stage),
        )
        result = fit(
            model,
            records.rows(self.split.retain),
            recipe,
            context,
            mask=mask,
            start=start,
            stop=stop,
            snapshots=snapshots,
            validate=make_validator(records, records.rows(self.split.validation), runtime),
            label=f"Retrain{stage.replace('.', ', ')}",
        )
        rewind = result.snapshots.get(recipe.rewind_epoch)
        provenance = self.trained.provenance.add_history(
            f"retrained on {len(self.split.retain)} records for {len(result.history)} epochs"
        )
        return Trained(
            model=runtime.release(model),
            mask=mask,
            split=self.split,
            provenance=self._update_provenance(provenance, architecture),
            state={} if rewind is None else {"rewind_checkpoint": rewind},
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
        architecture = self._make_architecture()
        provenance = self._update_provenance(self.trained.provenance.add_history("initial weights"), architecture)
        return Trained(self.build_start(), None, self.split, provenance, {})

    def train_with_mask(self, mask: Mask | None) -> tuple[Trained, list[Fit]]:
        """Train from the initial weights, with the mask from the first step on."""
        after, result = self._train(mask)
        return dataclasses.replace(after, state={}), [result]

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
