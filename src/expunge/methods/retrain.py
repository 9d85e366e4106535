"""Retrain: the reference that every other method is measured against."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from expunge.core.errors import MethodError, unknown_name_hint
from expunge.core.hashing import hash_tensors
from expunge.core.mask import Mask
from expunge.core.outcome import Cost, Outcome
from expunge.core.request import ForgetRequest
from expunge.core.split import Split, as_ids
from expunge.core.trained import Provenance, Trained
from expunge.data.batches import Batches
from expunge.models import Architecture
from expunge.sparsity import repeat_pruning
from expunge.training.checkpoint import load_state
from expunge.training.loop import Fit, fit, order_seed
from expunge.training.predict import validator
from expunge.training.recipes import recipe as as_recipe

from .base import Context, Method, identity_outcome, register
from .finetuning import SHED

#: What becomes of the mask of a sparse model.
MASKS: dict[str, str] = {
    "same": "the original's mask, from the initial weights on (paper A)",
    "rewind": "trained dense on D_r up to the rewind epoch, then with the original's mask, as the original was",
    "re-prune": "trained dense on D_r, then pruned exactly as the original was (paper B)",
}


#: Where initial weights and the order of records come from.
#: Schedules of pruning that begin at the initial weights: no dense training goes before them.
FROM_THE_START = ("at-init", "gradual", "soft-filter")
SEEDS: dict[str, str] = {
    "original": "those of the original model",
    "order": "the original's initial weights, another order",
    "new": "other initial weights and another order",
}


@register("Retrain", guarantee="exact", source="paper A [Jia2023]: the reference of every table; re-prune: paper B")
@dataclasses.dataclass(frozen=True)
class Retrain(Method):
    """Train anew on D_r from the original's initial weights, recipe and order of records.

    A dense model retrained so is exactly a model that never saw D_f. Of a sparse one, `mask` says what is kept: `same`
    and `rewind` keep its mask, which was made with D_f and still remembers, so that the outcome's guarantee is only
    `empirical`; `re-prune` makes the mask anew from D_r alone, with criterion, scope, schedule and seeds of the
    original's, and is `exact`. Input constants that were computed from training records are computed anew.

    `seeds` other than `original` make a second run of the reference, for noise floors: `order` keeps the initial
    weights and draws a new order of records from the context's seed, `new` draws both, as `train` does with that seed.
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

    def forget(self, trained: Trained, request: ForgetRequest, context: Context) -> Outcome:
        """See `Method.forget`.

        Raises:
            MethodError: the recipe or the seeds of the original are not known.
            MaskError: `re-prune`, and the mask does not say how it was made.
        """
        options = dataclasses.asdict(self)
        if len(request.record_ids) == 0:
            return identity_outcome(self, trained, request, context, options)
        provenance = trained.provenance
        if not provenance.recipe:
            raise MethodError(
                "the recipe of the original model is not known, so it cannot be trained anew",
                where="Retrain",
                hint="train the original with expunge, or record a recipe in its provenance",
            )
        split = request.apply(trained.split)
        seeds = dict(provenance.seeds)
        fresh = {"initial": context.seed, "order": order_seed(context.seed), "training": context.seed}
        if self.seeds == "new":
            seeds = fresh
        elif not ({"initial"} if self.seeds == "order" else {"initial", "order"}) <= set(seeds):
            raise MethodError(
                "the seeds of the original's initial weights and order of records are not known",
                where="Retrain",
                hint="set seeds=new to draw new ones from the method's seed",
            )
        elif self.seeds == "order":
            seeds = {**fresh, "initial": seeds["initial"]}
        work = _Work(trained, split, context, seeds)
        mask = trained.mask
        if mask is None or self.mask == "same":
            after, fits = work.plain(mask)
        elif self.mask == "rewind":
            after, fits = work.rewound(mask)
        else:
            after, fits = work.pruned_anew(mask, seeds.get("pruning", 0) if self.seeds == "original" else context.seed)
        exact = mask is None or self.mask == "re-prune"
        return Outcome(
            trained=after,
            request=request,
            method="Retrain",
            options=options,
            guarantee="exact" if exact else "empirical",
            cost=Cost(
                sum(one.trained_records for one in fits),
                sum(one.forward_records for one in fits),
                len(split.retain),
                sum(one.seconds for one in fits),
            ),
            rewrote=tuple(k for k in after.influence_state() if exact or k != "mask"),
            dropped=tuple(k for k in SHED if k in trained.state and k not in after.state),
            history=tuple(entry for one in fits for entry in one.history),
            seed=context.seed,
        )


@dataclasses.dataclass(frozen=True, eq=False)
class _Work:
    """One retraining: the original, the split after the request, the context, the seeds."""

    trained: Trained
    split: Split
    context: Context
    seeds: dict[str, int]

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
        recipe = as_recipe(self.trained.provenance.recipe)
        blueprint = Architecture.from_json(self.trained.provenance.architecture)
        blueprint = blueprint.renormalised(records, self.split.retain)
        begun = blueprint.build(self.seeds["initial"]) if begin_from is None else begin_from.model
        model = runtime.place(begun)
        wanted = {recipe.rewind_epoch} if mask is None and self.trained.mask is not None else set()
        path = self.context.checkpoint
        result = fit(
            model,
            Batches(
                records,
                records.rows(self.split.retain),
                batch_size=recipe.batch_size,
                device=runtime.torch_device,
                augment=recipe.augment,
                channels_last=runtime.channels_last,
            ),
            recipe,
            runtime=runtime,
            seed=self.seeds["order"] if order is None else order,
            mask=mask,
            start=start,
            stop=stop,
            snapshots=wanted,
            validate=validator(records, records.rows(self.split.validation), runtime),
            checkpoint_path=None if path is None else Path(path).with_name(Path(path).name + stage),
            progress=self.context.progress,
            label=f"Retrain{stage.replace('.', ', ')}",
        )
        rewind = result.snapshots.get(recipe.rewind_epoch)
        provenance = self.trained.provenance.then(
            f"retrained on {len(self.split.retain)} records for {len(result.history)} epochs"
        )
        return Trained(
            model=runtime.release(model),
            mask=mask,
            split=self.split,
            provenance=self._provenance(provenance, blueprint),
            state={} if rewind is None else {"rewind_checkpoint": rewind},
        ), result

    def _provenance(self, provenance: Provenance, blueprint: Architecture) -> Provenance:
        return dataclasses.replace(
            provenance,
            architecture=blueprint.to_json(),
            seeds=self.seeds,
            weights_from="training",
            initial_weights=hash_tensors(dict(blueprint.build(self.seeds["initial"]).named_parameters())),
        )

    def _untrained(self) -> Trained:
        """The initial weights, with the input constants of D_r."""
        blueprint = Architecture.from_json(self.trained.provenance.architecture)
        blueprint = blueprint.renormalised(self.context.records, self.split.retain)
        provenance = self._provenance(self.trained.provenance.then("initial weights"), blueprint)
        return Trained(blueprint.build(self.seeds["initial"]), None, self.split, provenance, {})

    def plain(self, mask: Mask | None) -> tuple[Trained, list[Fit]]:
        """From the initial weights, with the mask from the first step on."""
        after, result = self._train(mask)
        return dataclasses.replace(after, state={}), [result]

    def rewound(self, mask: Mask) -> tuple[Trained, list[Fit]]:
        """Dense to the rewind epoch, then masked for as many epochs as the original was."""
        recipe = as_recipe(self.trained.provenance.recipe)
        start = recipe.rewind_epoch
        stop = recipe.epochs + (start if mask.provenance.details.get("epochs") == "full" else 0)
        if mask.provenance.schedule == "at-init":  # the original wore its mask from the first step on
            return self.plain(mask)
        early, first = self._train(None, stop=start, stage=".dense")
        if first.best_epoch is not None:  # the rewind point is the last epoch, not the best
            load_state(early.model, early.state["rewind_checkpoint"])
        order = self.seeds.get("pruning_order", self.seeds["order"])
        after, second = self._train(mask, start=start, stop=stop, order=order, begin_from=early, stage=".masked")
        return dataclasses.replace(after, state={}), [first, second]

    def pruned_anew(self, mask: Mask, seed: int) -> tuple[Trained, list[Fit]]:
        """Pruned as the original was, on D_r alone; after dense training, unless the schedule starts anew anyway."""
        fits: list[Fit] = []
        if mask.provenance.schedule in FROM_THE_START:
            dense = self._untrained()
        else:
            dense, first = self._train(None, stage=".dense")
            fits.append(first)
        path = self.context.checkpoint
        sparse = repeat_pruning(
            dataclasses.replace(dense, split=dataclasses.replace(self.split, forget=as_ids(()))),
            self.context.records,
            mask,
            keep_weights="pruning_weights" in self.trained.state,
            runtime=self.context.runtime,
            seed=seed,
            checkpoint=None if path is None else Path(path).with_name(Path(path).name + ".pruned"),
            progress=self.context.progress,
            fits=fits,
        )
        return dataclasses.replace(sparse, split=self.split), fits
