"""Rewind: continue from an early checkpoint of the original's run on D_r alone."""

from __future__ import annotations

import dataclasses
from typing import Any

from expunge.core.errors import MethodError, unknown_name_hint
from expunge.core.trained import Trained
from expunge.methods.base import Method
from expunge.methods.options import require_range
from expunge.methods.registry import register_method
from expunge.methods.start import strip_patches
from expunge.methods.task import Task
from expunge.training.loop import fit
from expunge.training.predict import make_validator
from expunge.training.recipes import Recipe, get_recipe

from .prefix import PREFIXES
from .start_point import check_start_point, find_start_point


@dataclasses.dataclass(frozen=True)
class SqueezedRecipe(Recipe):
    """The rest of a recipe from epoch `begin` on, in fewer epochs: its learning rates at proportional positions.

    Attributes:
        base: the whole recipe, as JSON values.
        begin: the first epoch of the rest.
    """

    base: Any = None
    begin: int = 0

    def rate(self, position: float) -> float:
        """See `Recipe.rate`."""
        whole = get_recipe(self.base)
        return whole.rate(self.begin + position * (whole.epochs - self.begin) / max(1, self.epochs))


def squeeze_rest(recipe: Recipe, begin: int, epochs: int) -> SqueezedRecipe:
    """Return the rest of a recipe from epoch `begin` on, squeezed into a number of epochs."""
    values = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(Recipe)}
    return SqueezedRecipe(**{**values, "epochs": epochs, "keep_epochs": ()}, base=recipe.to_json(), begin=begin)


@register_method("Rewind", guarantee="empirical", citation="Mu, Klabjan 2024 (Rewind-to-Delete), without its noise")
@dataclasses.dataclass(frozen=True)
class Rewind(Method):
    """Go back to the original's weights after k epochs, and train on from there on D_r, to the end of the recipe.

    The checkpoint has seen D_f for k epochs, so the result is less contaminated than that of FT, but not clean; k = 0
    starts from the initial weights, and is then `Retrain` with the mask that the model has. The order of records is the
    original's (of a pruned model: that of its second training), the optimiser starts without state, and a mask holds
    from the checkpoint on. Cost: the rest in passes over D_r, and k over D unless the checkpoint is stored
    (`training.keep_epochs`).

    Attributes:
        prefix_epochs: k, an integer, or a fraction of the recipe's epochs below 1; 0: the initial weights.
        rest: epochs to train for: the rest of the learning-rate schedule is squeezed into them; 0: all that remain.
        prefix: where the checkpoint comes from: `recorded` or `recomputed`.
    """

    prefix_epochs: float = 0.2
    rest: int = 0
    prefix: str = "recorded"

    def __post_init__(self) -> None:
        require_range(
            "Rewind",
            prefix_epochs=(self.prefix_epochs, self.prefix_epochs >= 0),
            rest=(self.rest, self.rest >= 0),
        )
        known = [name for name in PREFIXES if name != "compressed"]
        if self.prefix not in known:
            hint = unknown_name_hint(self.prefix, known)
            raise MethodError(f"unknown prefix {self.prefix!r}", where="Rewind.prefix", hint=hint)

    def check_state(self, trained: Trained) -> None:
        """See `Method.check_state`.

        Raises:
            MethodError: recipe, order or initial weights of the original are not available.
            ConfigError: its recipe has fewer epochs than `prefix_epochs`.
        """
        check_start_point(self.prefix_epochs, self.prefix, strip_patches(trained), "Rewind.prefix_epochs")

    def unlearn(self, task: Task) -> Trained:
        """See `Method.unlearn`.

        Raises:
            MethodError: nothing would remain to train, or the stored checkpoint is of another run.
        """
        trained, context, where = strip_patches(task.trained), task.context, "Rewind.prefix_epochs"
        point = find_start_point(task, trained, prefix=self.prefix, epochs=self.prefix_epochs, where=where)
        recipe = get_recipe(trained.provenance.recipe)
        if point.epoch >= recipe.epochs:
            raise MethodError(f"no epoch of the recipe remains after epoch {point.epoch}", where=where)
        start, stop = point.epoch, recipe.epochs
        if self.rest:
            recipe, start, stop = squeeze_rest(recipe, point.epoch, self.rest), 0, self.rest
        seeds = point.runs.retraining.seeds
        order = seeds.get("pruning_order", seeds["order"]) if trained.mask is not None else seeds["order"]
        model = context.runtime.place(point.build())
        validation = context.records.rows(task.split.validation)
        result = fit(
            model,
            task.retain_rows,
            recipe,
            context.for_part("rest", seed=order),
            mask=trained.mask,
            start=start,
            stop=stop,
            validate=make_validator(context.records, validation, context.runtime),
            run_options=task.options,
            label="Rewind",
        )
        task.count(result)
        task.line += f"; trained for {len(result.history)} epochs from {point.line}"
        if point.clean:
            task.recomputed |= {"weights", "batch_norm", "normalisation"} & set(trained.list_influence_state())
        provenance = dataclasses.replace(
            trained.provenance, architecture=point.runs.retraining.make_architecture().to_json(), checkpoints={}
        )
        state = {name: tensors for name, tensors in task.state.items() if name != "patches"}
        released = context.runtime.release(model)
        return dataclasses.replace(trained, model=released, provenance=provenance, state=state)
