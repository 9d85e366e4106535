"""Scores of the error bound of [Jia2023]: its factors, the measured distances, and the recursion behind the bound.

Only the bound on the residual of the recursion is proved. It is not proved for a network that the product bounds the
measured distance, nor that SGD stays near the recursion; the scores measure both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from expunge.core.mask import Mask
from expunge.core.request import ForgetRequest
from expunge.core.seeds import derive, epoch_order
from expunge.core.split import Ids
from expunge.core.trained import Trained, clone_model
from expunge.data.batches import Batches
from expunge.data.records import Records
from expunge.evaluation.error_bound import measure_bound_terms, unroll, weight_distance
from expunge.evaluation.score import Score
from expunge.models import Architecture
from expunge.sparsity import recorded_schedule
from expunge.training import curvature
from expunge.training.curvature import Batch, combine, norm, project
from expunge.training.recipes import Recipe, get_recipe

CITATION = "[Jia2023], proposition 2; docs/sparsity.md"
#: Most training records that the Hessian is computed on, chosen by hash of their ids.
HESSIAN_RECORDS = 2048
#: Lanczos steps for each Hessian of the recursion.
SIGMA_STEPS = 8

_ALONG_PATH = "recursion of proposition 2 along the original's training steps and the method's steps, with their masks"
DEFINITIONS: dict[str, str] = {
    "Distance": "||theta_unlearned - theta_retrained||_2 over all parameters.",
    "Relative distance": "Distance divided by ||m (theta_retrained - theta_0)||_2, the distance of the retrained model "
    "from initialisation.",
    "Distance at theta_0": "Distance to the retrained weights of the GA of the proposition instead of the method: the "
    "summed gradients of D_f at theta_0, times eta and the epochs, are added to the original's weights.",
    "Bound": "eta^2 t ||m (theta_t - theta_0)|| sigma, as stated in the proposition: a product of measured factors. "
    "It is not proved that it bounds the distance for this network.",
    "Bound, linear": "eta t ||m (theta_t - theta_0)|| sigma / 2, the value of the recursion if ||theta_j - theta_0|| "
    "grows linearly in j.",
    "eta": "Mean learning rate of the original's training.",
    "t": "Number of steps of the original's training.",
    "Travelled": "||m (theta_t - theta_0)||_2, the distance of the original from initialisation.",
    "sigma": "Spectral norm of the masked block of the loss's Hessian at theta_t, by Lanczos over at most "
    f"{HESSIAN_RECORDS} training records.",
    "Recursion residual": f"||sum_j f_j||, the error after undoing the first-order part: {_ALONG_PATH}.",
    "Recursion bound": "sum_j eta_j sigma_j ||Delta_(j-1)||, the proved bound on that residual, with sigma_j from "
    f"{SIGMA_STEPS} Lanczos steps (a slight underestimate): {_ALONG_PATH}.",
    "Recursion error": "||Delta_SGD - first order - residual||, the deviation of SGD from the recursion; no bound on "
    f"it is proved: {_ALONG_PATH}.",
}


def score_error_bound(
    trained: Trained,
    original: Trained,
    retrained: Trained,
    request: ForgetRequest,
    records: Records,
    *,
    outcome: Mapping[str, Any],
) -> tuple[Score, ...]:
    """Score the factors of the bound at the original model, and the measured distances.

    The scores of the recursion are left out for the retrained model, for methods other than GA (alone or inside
    Un-prune), if they are not finite, and if training was not plain SGD with a constant rate and one mask from the
    initial weights on (no momentum, weight decay, augmentation or rewinding).

    Args:
        trained: the unlearned model.
        original: the original model; its provenance has its recipe and the seeds of its initial weights and order.
        retrained: the reference.
        request: D_f.
        records: the records of the split.
        outcome: the body of outcome.json: method, options, history.

    Raises:
        MaskError: the provenance of the original lacks the seed of the initial weights or the recipe.
    """
    recipe = get_recipe(original.provenance.recipe)
    train = original.split.train
    sample = _sample_records(records, train)
    terms = measure_bound_terms(original, sample.in_order, records=len(train))
    dense = Architecture.from_json(original.provenance.architecture).build(original.provenance.seeds["initial"])
    start = clone_model(dense)
    if original.mask is not None:
        original.mask.apply_(start)
    error = weight_distance(trained.model, retrained.model)
    span = weight_distance(retrained.model, start, retrained.mask)
    first_order = _measure_first_order_distance(start, original, retrained, request, records, terms.eta, recipe)
    values = {
        "Distance": error,
        "Relative distance": error / max(span, 1e-30),
        "Distance at theta_0": first_order,
        "Bound": terms.product,
        "Bound, linear": terms.product_linear,
        "eta": terms.eta,
        "t": terms.steps,
        "Travelled": terms.distance_from_init,
        "sigma": terms.sigma,
    }
    method = outcome["method"]["name"]
    path = None if method == "Retrain" else _recover_path(original, trained, request, records, outcome, recipe)
    if path is not None:
        run = unroll(dense, *path, sigma_steps=SIGMA_STEPS)
        sizes = (norm(run.residual), run.bound, run.error)
        if all(math.isfinite(size) for size in sizes):
            values |= dict(zip(("Recursion residual", "Recursion bound", "Recursion error"), sizes, strict=True))
    return tuple(
        Score(name, float(value), "", "lower" if "istance" in name else "reference", DEFINITIONS[name], CITATION)
        for name, value in values.items()
    )


def _sample_records(records: Records, ids: Ids) -> Batches:
    rows = records.rows(ids)
    chosen = rows[epoch_order(records.keys[rows], derive(0, "hessian"), 0)[:HESSIAN_RECORDS]]
    return Batches(records, chosen, batch_size=HESSIAN_RECORDS)


def _measure_first_order_distance(
    start: torch.nn.Module,
    original: Trained,
    retrained: Trained,
    request: ForgetRequest,
    records: Records,
    eta: float,
    recipe: Recipe,
) -> float:
    """||theta_t + eta E n_f / B m grad L_f(theta_0) - theta_retrained||: the distance of the proposition's GA."""
    rows = records.rows(request.record_ids)
    gradient = curvature.gradient(start, Batches(records, rows, batch_size=1024).in_order())
    weights = {name: p.detach() for name, p in curvature.parameters_of(original.model).items()}
    other = {name: p.detach() for name, p in curvature.parameters_of(retrained.model).items()}
    scale = eta * recipe.epochs * len(rows) / recipe.batch_size
    undone = combine(weights, scale, project(gradient, original.mask))
    return norm(combine(undone, -1.0, other))


def _recover_path(
    original: Trained,
    trained: Trained,
    request: ForgetRequest,
    records: Records,
    outcome: Mapping[str, Any],
    recipe: Recipe,
) -> tuple[Sequence[Mask | None], Sequence[Batch], Sequence[float]] | None:
    """Masks, batches and rates of the original's training and the method's steps; None if these were not plain SGD."""
    plain = (
        recipe.momentum == recipe.weight_decay == 0 and recipe.augment == "none" and recipe.lr_schedule == "constant"
    )
    schedule = None if original.mask is None else recorded_schedule(original.mask)
    at_init = original.mask is None or (schedule is not None and schedule.scores_initial_weights)
    if not (plain and at_init and recipe.select == "last"):
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
