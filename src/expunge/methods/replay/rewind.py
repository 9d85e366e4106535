"""Rewind: continue from an early checkpoint of the original's run on D_r alone."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from torch import nn

from expunge.core import early_checkpoints
from expunge.core.errors import MethodError, unknown_name_hint
from expunge.core.mask import Mask
from expunge.core.outcome import Outcome
from expunge.core.request import ForgetRequest
from expunge.core.show import plural
from expunge.core.trained import Trained
from expunge.data.records import Records
from expunge.methods.base import Method
from expunge.methods.options import require_range
from expunge.methods.reads import Reads, Sizes
from expunge.methods.registry import register_method
from expunge.methods.start import strip_patches
from expunge.methods.task import Task
from expunge.training.context import Context
from expunge.training.loop import fit
from expunge.training.predict import make_validator
from expunge.training.recipes import Recipe, count_epochs, get_recipe

from .noise_bound import (
    ASSUMPTIONS,
    add_noise,
    bound_distance,
    check_covered,
    check_covered_network,
    check_covered_recipe,
    couple_epochs,
    find_epsilon,
)
from .prefix import PREFIXES
from .start_point import StartPoint, check_start_point, find_start_point


@dataclasses.dataclass(frozen=True)
class SqueezedRecipe(Recipe):
    """The rest of a recipe from epoch `begin` on, in fewer epochs: its learning rates at proportional positions.

    Attributes:
        base: the whole recipe.
        begin: the first epoch of the rest.
    """

    base: Recipe = dataclasses.field(default_factory=Recipe)
    begin: int = 0

    def rate(self, position: float, steps: int | None = None) -> float:
        """See `Recipe.rate`."""
        remaining = self.base.epochs - self.begin
        return self.base.rate(self.begin + position * remaining / max(1, self.epochs), steps)

    def to_json(self) -> dict[str, Any]:
        """See `Recipe.to_json`."""
        return {**super().to_json(), "base": self.base.to_json(), "begin": self.begin}


def squeeze_rest(recipe: Recipe, begin: int, epochs: int) -> SqueezedRecipe:
    """Return the rest of a recipe from epoch `begin` on, squeezed into a number of epochs."""
    values = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(Recipe)}
    return SqueezedRecipe(
        **{**values, "epochs": epochs, "keep_epochs": (), "keep_moments": False}, base=recipe, begin=begin
    )


def check_remaining(epochs: float, recipe: Recipe, where: str) -> None:
    """Raise MethodError if no epoch of a recipe remains after the checkpoint."""
    begin = count_epochs(epochs, recipe.epochs, where) if epochs else 0
    if begin >= recipe.epochs:
        raise MethodError(f"no epoch of the recipe remains after epoch {begin}", where=where)


@register_method(
    "Rewind",
    guarantee="conditional",
    citation="[Mu2025] (Rewind-to-Delete), with a bound of our own",
    space={"rest": [0, 2, 4, 6, 8]},
)
@dataclasses.dataclass(frozen=True)
class Rewind(Method):
    """Go back to the original's weights after k epochs, and train on from there on D_r, to the end of the recipe.

    The checkpoint has seen D_f for k epochs, so the result is less contaminated than that of FT, but not clean; k = 0
    starts from the initial weights, and is then `Retrain` with the mask that the model has. The order of records is the
    original's (of a pruned model: that of its second training), and a mask holds from the checkpoint on. The optimiser
    starts without state, unless its moments are stored with the checkpoint (`training.keep_moments`). Cost: the rest in
    passes over D_r, and k over D unless the checkpoint is stored (`training.keep_epochs`).

    With `noise`, Gaussian noise is added to the trained parameters at the end. If `smoothness` and `gradient_bound` are
    stated too, this is Rewind-to-Delete: the outcome has the guarantee `conditional`, with an epsilon for `delta` that
    compares it with `Retrain` plus noise of the same size (docs/replay-noise.md). The constants are not checked; models
    that the bound does not cover are refused. Otherwise the guarantee of the outcome is `empirical`.

    Attributes:
        prefix_epochs: k, an integer, or a fraction of the recipe's epochs below 1; 0: the initial weights.
        rest: epochs to train for: the rest of the learning-rate schedule is squeezed into them; 0: all that remain.
        prefix: where the checkpoint comes from: `recorded` or `recomputed`.
        noise: standard deviation of the noise.
        smoothness: L, a Lipschitz constant of the gradient of each record's loss; 0: not stated.
        gradient_bound: G, a bound of the norm of that gradient; 0: not stated.
        delta: of the guarantee.
    """

    prefix_epochs: float = 0.2
    rest: int = 0
    prefix: str = "recorded"
    noise: float = 0.0
    smoothness: float = 0.0
    gradient_bound: float = 0.0
    delta: float = 1e-5
    one_process: ClassVar[str] = ""

    def __post_init__(self) -> None:
        infinity = float("inf")
        require_range(
            "Rewind",
            prefix_epochs=(self.prefix_epochs, 0 <= self.prefix_epochs < infinity),
            rest=(self.rest, self.rest >= 0),
            noise=(self.noise, 0 <= self.noise < infinity),
            smoothness=(self.smoothness, 0 <= self.smoothness < infinity),
            gradient_bound=(self.gradient_bound, 0 <= self.gradient_bound < infinity),
            delta=(self.delta, 0 < self.delta < 1),
        )
        stated = [name for name in ("smoothness", "gradient_bound") if getattr(self, name)]
        if stated and not (len(stated) == 2 and self.noise):
            raise MethodError(
                "a bound needs noise, smoothness and gradient_bound, all above 0",
                where=f"Rewind.{stated[0]}",
                hint="leave out smoothness and gradient_bound: then there is no bound",
            )
        if stated and self.rest:
            raise MethodError(
                "the bound compares with Retrain, which follows the whole recipe; rest shortens it",
                where="Rewind.rest",
                hint="leave rest out",
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
        trained = strip_patches(trained)
        check_start_point(self.prefix_epochs, self.prefix, trained, "Rewind.prefix_epochs")
        if trained.provenance.recipe:
            self.check_recipe(get_recipe(trained.provenance.recipe))
        if self.gradient_bound:
            check_covered(trained, "Rewind.noise")

    def check_recipe(self, recipe: Recipe) -> None:
        """See `Method.check_recipe`."""
        check_remaining(self.prefix_epochs, recipe, "Rewind.prefix_epochs")
        if self.gradient_bound:
            check_covered_recipe(recipe, "Rewind.noise")

    def check_request(self, model: nn.Module, mask: Mask | None, request: ForgetRequest, records: Records) -> None:
        """See `Method.check_request`.

        Raises:
            MethodError: the bound does not cover the network.
        """
        if self.gradient_bound:
            check_covered_network(model, records.input_shape, "Rewind.noise")

    def find_guarantee(self, trained: Trained) -> str:
        """See `Method.find_guarantee`: `conditional` if the constants of the bound are stated."""
        return "conditional" if self.gradient_bound else "empirical"

    def forget(self, trained: Trained, request: ForgetRequest, context: Context) -> Outcome:
        """See `Method.forget`. An empty request adds no noise, so it has no bound."""
        outcome = super().forget(trained, request, context)
        return outcome if len(request.record_ids) else dataclasses.replace(outcome, guarantee="empirical")

    def estimate_reads(self, trained: Trained, sizes: Sizes) -> Reads | None:
        """See `Method.estimate_reads`."""
        if not trained.provenance.recipe:
            return None
        recipe = get_recipe(trained.provenance.recipe)
        k = count_epochs(self.prefix_epochs, recipe.epochs, "Rewind.prefix_epochs") if self.prefix_epochs else 0
        epochs = self.rest or recipe.epochs - k
        found = epochs * Reads(retain=sizes.retain, other_forward=sizes.validation * (recipe.select == "best"))
        if not k or (self.prefix == "recorded" and early_checkpoints.STATE in trained.state):
            return found
        return found + Reads(retain=k * sizes.retain, forget=k * sizes.forget, at_most=True)

    def unlearn(self, task: Task) -> Trained:
        """See `Method.unlearn`.

        Raises:
            MethodError: nothing would remain to train, or the stored checkpoint is of another run; or the bound does
                not cover the run, or is not finite.
        """
        trained, context, where = strip_patches(task.trained), task.context, "Rewind.prefix_epochs"
        point = find_start_point(task, trained, prefix=self.prefix, epochs=self.prefix_epochs, where=where)
        recipe = get_recipe(trained.provenance.recipe)
        if self.gradient_bound:
            task.bound = self._find_bound(task, point, recipe)
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
            steps=point.runs.retraining.make_steps(order) if not self.rest else None,
            start=start,
            stop=stop,
            validate=make_validator(context.records, validation, context.runtime),
            run_options=task.options,
            moments=point.moments,
            label="Rewind",
        )
        task.count(result)
        task.line += f"; trained for {plural(len(result.history), 'epoch')} from {point.line}"
        if point.clean:
            task.recomputed |= {"weights", "batch_norm", "normalisation"} & set(trained.list_influence_state())
        provenance = dataclasses.replace(
            trained.provenance, architecture=point.runs.retraining.make_architecture().to_json(), checkpoints={}
        )
        state = {name: tensors for name, tensors in task.state.items() if name != "patches"}
        released = context.runtime.release(model)
        if self.noise:
            add_noise(released, self.noise, context.seed)
            task.line += f", with Gaussian noise of standard deviation {self.noise:g}"
        return dataclasses.replace(trained, model=released, provenance=provenance, state=state)

    def _find_bound(self, task: Task, point: StartPoint, recipe: Recipe) -> dict[str, Any]:
        """Return `Outcome.bound`: the distance of the two runs, and what the noise makes of it."""
        records, seeds = task.context.records, point.runs.retraining.seeds
        if not point.runs.retraining.start.independent:
            raise MethodError(
                "the bound does not cover this model: parts of its initial weights are of an unknown origin",
                where="Rewind.noise",
                hint="declare the start: model.initial={file, hash}",
            )
        if task.context.order is not None:
            raise MethodError(
                "the bound does not cover a training elsewhere, whose order of records was recorded",
                where="Rewind.noise",
                hint="leave smoothness and gradient_bound out: then the noise has no guarantee",
            )
        if task.context.runtime.precision != "float32":
            raise MethodError(
                f"the bound does not cover training in {task.context.runtime.precision}",
                where="Rewind.noise",
                hint="use precision float32",
            )
        both = (records.rows(task.trained.split.retain), task.retain_rows)
        initial = [p for p in point.runs.retraining.build_start().parameters() if p.requires_grad]
        norm = sum(float(parameter.detach().double().square().sum()) for parameter in initial) ** 0.5
        constants = {"smoothness": self.smoothness, "gradient_bound": self.gradient_bound}
        decay = recipe.weight_decay
        before = () if point.clean else couple_epochs(records, both, recipe, seeds["order"], range(point.epoch))
        rest = list(
            couple_epochs(records, (both[1], both[1]), recipe, seeds["order"], range(point.epoch, recipe.epochs))
        )
        apart = bound_distance(before, **constants, weight_decay=decay, norm=norm)
        distance = bound_distance(rest, **constants, weight_decay=decay, distance=apart)
        if not distance < 1e100:
            raise MethodError(
                "the bound of the distance to Retrain is not finite", where="Rewind.noise", hint="rewind further"
            )
        epsilon = find_epsilon(self.delta, distance / self.noise)
        numbers = {"epsilon": epsilon, "delta": self.delta, "noise": self.noise, "distance": distance}
        return {**numbers, "steps": len(rest), **constants, "assumptions": list(ASSUMPTIONS)}
