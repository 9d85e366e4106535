"""Retrain: the reference that every other method is measured against."""

from __future__ import annotations

import dataclasses

from expunge.core.errors import MethodError
from expunge.core.outcome import Cost, Outcome
from expunge.core.request import ForgetRequest
from expunge.core.trained import Trained
from expunge.data.batches import Batches
from expunge.models import Architecture
from expunge.training.loop import fit, order_seed
from expunge.training.predict import validator
from expunge.training.recipes import recipe as as_recipe

from .base import Context, Method, identity_outcome, register
from .finetuning import SHED


@register("Retrain", guarantee="exact", source="paper A [Jia2023]: the reference of every table")
@dataclasses.dataclass(frozen=True)
class Retrain(Method):
    """Train anew on D_r from the original's initial weights, recipe and order of records.

    A dense model retrained so is exactly a model that never saw D_f. A sparse one keeps its mask, as in paper A; the
    mask was made with D_f and still remembers, so the outcome's guarantee is then only `empirical`. Input constants
    that were computed from training records are computed anew.

    `same_seed=False` draws new initial weights and a new order from the context's seed, as `train` does with it.
    """

    same_seed: bool = True

    def forget(self, trained: Trained, request: ForgetRequest, context: Context) -> Outcome:
        """See `Method.forget`.

        Raises:
            MethodError: the recipe or the seeds of the original are not known.
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
        records, runtime = context.records, context.runtime
        recipe = as_recipe(provenance.recipe)
        seeds = dict(provenance.seeds)
        if not self.same_seed:
            seeds = {"initial": context.seed, "order": order_seed(context.seed), "training": context.seed}
        elif not {"initial", "order"} <= set(seeds):
            raise MethodError(
                "the seeds of the original's initial weights and order of records are not known",
                where="Retrain",
                hint="set same_seed=False to draw new ones from the method's seed",
            )
        blueprint = Architecture.from_json(provenance.architecture).renormalised(records, split.retain)
        model = runtime.place(blueprint.build(seeds["initial"]))
        result = fit(
            model,
            Batches(
                records,
                records.rows(split.retain),
                batch_size=recipe.batch_size,
                device=runtime.torch_device,
                augment=recipe.augment,
                channels_last=runtime.channels_last,
            ),
            recipe,
            runtime=runtime,
            seed=seeds["order"],
            mask=trained.mask,
            validate=validator(records, records.rows(split.validation), runtime),
            checkpoint_path=context.checkpoint,
            progress=context.progress,
            label="Retrain",
        )
        after = Trained(
            model=runtime.release(model),
            mask=trained.mask,
            split=split,
            provenance=dataclasses.replace(
                provenance.then(f"retrained on {len(split.retain)} records for {recipe.epochs} epochs"),
                architecture=blueprint.to_json(),
                seeds=seeds,
                weights_from="training",
            ),
        )
        rewrote = tuple(k for k in after.influence_state() if k != "mask")
        return Outcome(
            trained=after,
            request=request,
            method="Retrain",
            options=options,
            guarantee="exact" if after.mask is None else "empirical",
            cost=Cost(result.trained_records, result.forward_records, len(split.retain), result.seconds),
            rewrote=rewrote,
            dropped=tuple(k for k in SHED if k in trained.state),
            history=result.history,
            seed=context.seed,
        )
