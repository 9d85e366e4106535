"""Scores of the error bound of [Jia2023]: its factors, the measured distances, and the recursion behind the bound.

Only the bound on the residual of the recursion is proved. It is not proved for a network that the product bounds the
measured distance, nor that SGD stays near the recursion; the scores measure both.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import torch

from expunge.core.mask import Mask
from expunge.core.seeds import derive, epoch_order
from expunge.core.split import Ids
from expunge.core.trained import clone_model
from expunge.data.batches import Batch, Batches
from expunge.data.records import Records
from expunge.evaluation.error_bound import BoundTerms, measure_bound_terms, unroll, weight_distance
from expunge.evaluation.registry.definition import Measurement, register_score
from expunge.evaluation.registry.inputs import ScoreInputs
from expunge.models import Architecture
from expunge.sparsity import recorded_schedule
from expunge.training import curvature
from expunge.training.curvature import combine, norm, project
from expunge.training.recipes import Recipe, get_recipe

#: Most training records that the Hessian is computed on, chosen by hash of their ids.
HESSIAN_RECORDS = 2048
#: Lanczos steps for each Hessian of the recursion.
SIGMA_STEPS = 8

_ALONG_PATH = "recursion of proposition 2 along the original's training steps and the method's steps, with their masks"


@dataclasses.dataclass(frozen=True)
class _Bound:
    """The factors of the bound, the measured distances, and the recursion if there is one."""

    terms: BoundTerms
    distance: float
    span: float
    first_order: float
    residual: float | None
    bound: float | None
    error: float | None


def _measure_bound(inputs: ScoreInputs) -> _Bound:
    """Measure everything at once.

    The recursion is left out for the retrained model, for methods other than GA (alone or inside Un-prune), if its
    norms are not finite, if the outcome does not record GA's batch size, epochs and learning rate (inside Un-prune:
    those that were left at their defaults), and if training was not plain SGD with a constant rate and one mask from
    the initial weights on (no momentum, weight decay, augmentation or rewinding).

    Raises:
        MaskError: the provenance of the original lacks the seed of the initial weights or the recipe.
    """
    original, retrained, records = inputs.original, inputs.retrained, inputs.records
    recipe = get_recipe(original.provenance.recipe)
    train = original.split.train
    sample = _sample_records(records, train)
    terms = measure_bound_terms(original, sample.in_order, records=len(train))
    dense = Architecture.from_json(original.provenance.architecture).build(original.provenance.seeds["initial"])
    start = clone_model(dense)
    if original.mask is not None:
        original.mask.apply_(start)
    distance = weight_distance(inputs.trained.model, retrained.model)
    span = weight_distance(retrained.model, start, retrained.mask)
    first_order = _measure_first_order_distance(start, inputs, terms.eta, recipe)
    path = None if inputs.outcome["method"]["name"] == "Retrain" else _recover_path(inputs, recipe)
    sizes: tuple[float | None, ...] = (None, None, None)
    if path is not None:
        run = unroll(dense, *path, sigma_steps=SIGMA_STEPS)
        found = (norm(run.residual), run.bound, run.error)
        if all(math.isfinite(size) for size in found):
            sizes = found
    return _Bound(terms, distance, span, first_order, *sizes)


@register_score(
    "Distance", direction="lower", needs=("models", "bound"), citation="[Jia2023], proposition 2; docs/sparsity.md",
    position=300, compared=False,
)  # fmt: skip
def measure_distance(inputs: ScoreInputs) -> Measurement:
    """Distance of the unlearned from the retrained weights, over all parameters."""
    return Measurement(
        float(inputs.once(_measure_bound).distance), "||theta_unlearned - theta_retrained||_2 over all parameters."
    )


@register_score(
    "Relative distance", direction="lower", needs=("models", "bound"),
    citation="[Jia2023], proposition 2; docs/sparsity.md", position=310, compared=False,
)  # fmt: skip
def measure_relative_distance(inputs: ScoreInputs) -> Measurement:
    """Distance divided by the retrained model's distance from theta_0."""
    found = inputs.once(_measure_bound)
    return Measurement(
        float(found.distance / max(found.span, 1e-30)),
        "Distance divided by ||m (theta_retrained - theta_0)||_2, the distance of the retrained model from "
        "initialisation.",
    )


@register_score(
    "Distance at theta_0", direction="lower", needs=("models", "bound"),
    citation="[Jia2023], proposition 2; docs/sparsity.md", position=320, compared=False,
)  # fmt: skip
def measure_distance_at_start(inputs: ScoreInputs) -> Measurement:
    """Distance for the GA of the proposition, which adds the gradients of D_f at theta_0, instead of the method."""
    return Measurement(
        float(inputs.once(_measure_bound).first_order),
        "Distance to the retrained weights of the GA of the proposition instead of the method: the "
        "summed gradients of D_f at theta_0, times eta and the epochs, are added to the original's weights.",
    )


@register_score(
    "Bound", direction="reference", needs=("models", "bound"), citation="[Jia2023], proposition 2; docs/sparsity.md",
    position=330, compared=False,
)  # fmt: skip
def measure_bound(inputs: ScoreInputs) -> Measurement:
    """eta^2 t Travelled sigma, as in the proposition."""
    return Measurement(
        float(inputs.once(_measure_bound).terms.product),
        "eta^2 t ||m (theta_t - theta_0)|| sigma, as stated in the proposition: a product of measured factors. "
        "It is not proved that it bounds the distance for this network.",
    )


@register_score(
    "Bound, linear", direction="reference", needs=("models", "bound"),
    citation="[Jia2023], proposition 2; docs/sparsity.md", position=340, compared=False,
)  # fmt: skip
def measure_linear_bound(inputs: ScoreInputs) -> Measurement:
    """eta t Travelled sigma / 2, the value of the recursion if the distance from theta_0 grows linearly."""
    return Measurement(
        float(inputs.once(_measure_bound).terms.product_linear),
        "eta t ||m (theta_t - theta_0)|| sigma / 2, the value of the recursion if ||theta_j - theta_0|| "
        "grows linearly in j.",
    )


@register_score(
    "eta", direction="reference", needs=("models", "bound"), citation="[Jia2023], proposition 2; docs/sparsity.md",
    position=350, compared=False,
)  # fmt: skip
def measure_eta(inputs: ScoreInputs) -> float:
    """Mean learning rate of the original's training."""
    return float(inputs.once(_measure_bound).terms.eta)


@register_score(
    "t", direction="reference", needs=("models", "bound"), citation="[Jia2023], proposition 2; docs/sparsity.md",
    position=360, compared=False,
)  # fmt: skip
def measure_steps(inputs: ScoreInputs) -> float:
    """Number of steps of the original's training."""
    return float(inputs.once(_measure_bound).terms.steps)


@register_score(
    "Travelled", direction="reference", needs=("models", "bound"),
    citation="[Jia2023], proposition 2; docs/sparsity.md", position=370, compared=False,
)  # fmt: skip
def measure_travelled(inputs: ScoreInputs) -> float:
    """||m (theta_t - theta_0)||_2, the distance of the original from initialisation."""
    return float(inputs.once(_measure_bound).terms.distance_from_init)


@register_score(
    "sigma", direction="reference", needs=("models", "bound"), citation="[Jia2023], proposition 2; docs/sparsity.md",
    position=380, compared=False,
)  # fmt: skip
def measure_sigma(inputs: ScoreInputs) -> Measurement:
    """Spectral norm of the masked block of the Hessian of the training loss, at theta_t."""
    return Measurement(
        float(inputs.once(_measure_bound).terms.sigma),
        "Spectral norm of the masked block of the loss's Hessian at theta_t, by Lanczos over at most "
        f"{HESSIAN_RECORDS} training records.",
    )


@register_score(
    "Recursion residual", direction="reference", needs=("models", "bound"),
    citation="[Jia2023], proposition 2; docs/sparsity.md", position=390, compared=False,
)  # fmt: skip
def measure_residual(inputs: ScoreInputs) -> Measurement | None:
    """Norm of the residual of the recursion along the steps that were taken."""
    found = inputs.once(_measure_bound).residual
    text = f"||sum_j f_j||, the error after undoing the first-order part: {_ALONG_PATH}."
    return None if found is None else Measurement(found, text)


@register_score(
    "Recursion bound", direction="reference", needs=("models", "bound"),
    citation="[Jia2023], proposition 2; docs/sparsity.md", position=400, compared=False,
)  # fmt: skip
def measure_residual_bound(inputs: ScoreInputs) -> Measurement | None:
    """The proved bound on the residual of the recursion."""
    found = inputs.once(_measure_bound).bound
    text = (
        "sum_j eta_j sigma_j ||Delta_(j-1)||, the proved bound on that residual, with sigma_j from "
        f"{SIGMA_STEPS} Lanczos steps (a slight underestimate): {_ALONG_PATH}."
    )
    return None if found is None else Measurement(found, text)


@register_score(
    "Recursion error", direction="reference", needs=("models", "bound"),
    citation="[Jia2023], proposition 2; docs/sparsity.md", position=410, compared=False,
)  # fmt: skip
def measure_recursion_error(inputs: ScoreInputs) -> Measurement | None:
    """Distance of SGD from the recursion; there is no bound on it."""
    found = inputs.once(_measure_bound).error
    text = (
        "||Delta_SGD - first order - residual||, the deviation of SGD from the recursion; no bound on "
        f"it is proved: {_ALONG_PATH}."
    )
    return None if found is None else Measurement(found, text)


def _sample_records(records: Records, ids: Ids) -> Batches:
    rows = records.rows(ids)
    chosen = rows[epoch_order(records.keys[rows], derive(0, "hessian"), 0)[:HESSIAN_RECORDS]]
    return Batches(records, chosen, batch_size=HESSIAN_RECORDS)


def _measure_first_order_distance(start: torch.nn.Module, inputs: ScoreInputs, eta: float, recipe: Recipe) -> float:
    """||theta_t + eta E n_f / B m grad L_f(theta_0) - theta_retrained||: the distance of the proposition's GA."""
    original, retrained, request, records = inputs.original, inputs.retrained, inputs.request, inputs.records
    rows = records.rows(request.record_ids)
    gradient = curvature.gradient(start, Batches(records, rows, batch_size=1024).in_order())
    weights = {name: p.detach() for name, p in curvature.parameters_of(original.model).items()}
    other = {name: p.detach() for name, p in curvature.parameters_of(retrained.model).items()}
    scale = eta * recipe.epochs * len(rows) / recipe.batch_size
    undone = combine(weights, scale, project(gradient, original.mask))
    return norm(combine(undone, -1.0, other))


def _recover_path(
    inputs: ScoreInputs, recipe: Recipe
) -> tuple[Sequence[Mask | None], Sequence[Batch], Sequence[float]] | None:
    """Masks, batches and rates of the original's training and the method's steps; None if these were not plain SGD."""
    original, trained, request, records = inputs.original, inputs.trained, inputs.request, inputs.records
    outcome = inputs.outcome
    plain = (
        recipe.momentum == recipe.weight_decay == 0 and recipe.augment == "none" and recipe.lr_schedule == "constant"
    ) and (recipe.is_plain_sgd and not (recipe.warmup or recipe.warmup_steps))
    schedule = None if original.mask is None else recorded_schedule(original.mask)
    at_init = original.mask is None or (schedule is not None and schedule.scores_initial_weights)
    if not (plain and at_init and recipe.select == "last" and original.provenance.weights_from == "training"):
        return None
    order = original.provenance.seeds["order"]
    steps = list(_replay_epochs(records, original.split.train, recipe.batch_size, recipe.epochs, order))
    masks: list[Mask | None] = [original.mask] * len(steps)
    rates = [recipe.learning_rate] * len(steps)
    options = dict(outcome["method"]["options"])
    name = outcome["method"]["name"]
    if name == "Un-prune":
        name, options = options["method"], dict(options["method_options"] or {})
    if name != "GA" or options.get("momentum") != 0 or options.get("weight_decay") != 0:
        return None
    if options.get("optimiser", "sgd") != "sgd" or options.get("clip_norm"):
        return None
    if not {"batch_size", "epochs", "learning_rate"} <= options.keys():
        return None
    extra = list(
        _replay_epochs(
            records, request.record_ids, options["batch_size"], options["epochs"],
            derive(outcome["seeds"]["method"], "method", "GA"),
        )
    )  # fmt: skip
    rule = outcome["method"]["options"].get("rule")
    grown = {"influence": trained.mask, "dense": None}.get(str(rule), _unite(original.mask, trained.mask))
    steps += extra
    masks += [grown] * len(extra)
    rates += [-float(options["learning_rate"])] * len(extra)
    if original.mask is not None:  # a step of rate 0 applies the final mask
        steps, masks, rates = [*steps, steps[-1]], [*masks, trained.mask], [*rates, 0.0]
    return masks, steps, rates


def _replay_epochs(records: Records, ids: Ids, batch_size: int, epochs: int, seed: int) -> Iterator[Batch]:
    batches = Batches(records, records.rows(ids), batch_size=batch_size)
    for epoch in range(epochs):
        yield from batches.epoch(seed, epoch)


def _unite(one: Mask | None, other: Mask | None) -> Mask | None:
    """The weights kept in either mask; the grown mask is not stored, and this is its known part."""
    if one is None or other is None:
        return None
    kept = {name: tensor | other.kept[name] for name, tensor in one.kept.items()}
    return Mask(kept, one.provenance)
