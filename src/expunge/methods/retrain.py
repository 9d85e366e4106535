"""Retrain: training on the retain set only. It is the reference for all other methods."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from expunge.core.errors import MethodError, unknown_name_hint
from expunge.core.seeds import derive
from expunge.core.trained import Trained
from expunge.sparsity import pruning_of
from expunge.training.loop import order_seed
from expunge.training.recipes import get_recipe

from .base import Method
from .reads import Reads, Sizes
from .registry import register_method
from .retraining import Retraining
from .start import check_retrained, check_start, find_start, strip_patches
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
#: In place of the seed that a run will draw: whether a start depends on the trained weights does not depend on it.
_ANY_SEED = derive(0, "methods", "retrain", "any seed")


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
    one_process: ClassVar[str] = ""

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
            MethodError: the recipe of the original is not recorded, or the network starts from the weights of the
                trained model.
            MaskError: with `re-prune`, the mask's provenance does not record how it was made.
        """
        if trained.provenance.history and not trained.provenance.recipe:
            raise _refuse_recipe()
        check_start(trained)
        if trained.mask is not None and self.mask == "re-prune":
            pruning_of(trained.mask, trained.model, tuple(trained.provenance.architecture["input_shape"]))

    def estimate_reads(self, trained: Trained, sizes: Sizes) -> Reads | None:
        """See `Method.estimate_reads`."""
        if not trained.provenance.recipe:
            return None
        recipe = get_recipe(trained.provenance.recipe)
        epochs = recipe.epochs
        if trained.mask is not None and self.mask == "re-prune":
            return None
        if trained.mask is not None and self.mask == "rewind":
            return epochs * Reads(retain=sizes.retain, other_forward=sizes.validation, at_most=True)
        return epochs * Reads(retain=sizes.retain, other_forward=sizes.validation * (recipe.select == "best"))

    def find_guarantee(self, trained: Trained) -> str:
        """See `Method.find_guarantee`: `exact` if neither mask nor start depends on D_f, as far as it is declared."""
        if trained.mask is not None and self.mask != "re-prune":
            return "empirical"
        trained = strip_patches(trained)
        provenance = trained.provenance
        if not provenance.history or not provenance.architecture:  # a stand-in for a model that is not trained yet
            return "exact"
        known = self.seeds != "new" and "initial" in provenance.seeds
        start = find_start(trained, provenance.seeds["initial"] if known else _ANY_SEED)
        return "exact" if start.independent else "empirical"

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
            raise _refuse_recipe()
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
        retraining = Retraining(trained, task.split, context, seeds, start)
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
        task.retrained = True
        unchanged = {"mask"} if mask is not None and self.mask != "re-prune" else set()
        unchanged |= {"weights"} if start.frozen else set()
        task.recomputed |= {name for name in after.list_influence_state() if name not in unchanged}
        if start.note:
            *earlier, last = after.provenance.history
            provenance = dataclasses.replace(after.provenance, history=(*earlier, last + start.note))
            after = dataclasses.replace(after, provenance=provenance)
        return after


def _refuse_recipe() -> MethodError:
    return MethodError(
        "the recipe of the original model is not recorded, so it cannot be retrained",
        where="Retrain",
        hint="train the original with expunge, or record a recipe in its provenance",
    )
