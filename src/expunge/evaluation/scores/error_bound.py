"""Paper A's error bound as scores: its factors, the measured error, and the recursion that the bound abbreviates.

What is proved is the bound on the recursion's own residual. That the printed product bounds the measured error is not
proved for a network, nor that SGD stays near the recursion; the scores say how far both are off.
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
from expunge.evaluation.error_bound import bound_terms, distance, unroll
from expunge.evaluation.score import Score
from expunge.models import Architecture
from expunge.training import curvature
from expunge.training.curvature import Batch, combine, norm, project
from expunge.training.recipes import Recipe, get_recipe

SOURCE = "paper A [Jia2023], proposition 2; docs/sparsity.md"
#: Training records that the Hessian is taken over, chosen by hash of their ids.
HESSIAN_RECORDS = 2048
#: Lanczos steps a Hessian of the recursion.
SIGMA_STEPS = 8

_ALONG = "the recursion of proposition 2 along the original's training and the method's steps, with the mask of each"
MEANING: dict[str, str] = {
    "Distance": "||theta_unlearned - theta_retrained||_2 over all parameters.",
    "Relative distance": "The distance over ||m (theta_retrained - theta_0)||_2, what retraining travelled.",
    "Distance at theta_0": "The proposition's own GA in the method's place: the summed gradients of D_f at theta_0, "
    "times eta and the epochs, are added to the original's weights; then the distance to the retrained ones.",
    "Bound": "eta^2 t ||m (theta_t - theta_0)|| sigma, as the proposition prints it: a product of measured factors; "
    "that it bounds the distance is not proved for this network.",
    "Bound, linear": "eta t ||m (theta_t - theta_0)|| sigma / 2, what the recursion gives for a steady path.",
    "eta": "Mean learning rate of the original's training.",
    "t": "Number of steps of the original's training.",
    "Travelled": "||m (theta_t - theta_0)||_2 of the original.",
    "sigma": "Spectral norm of the masked block of the loss's Hessian at theta_t, by Lanczos over at most "
    f"{HESSIAN_RECORDS} training records.",
    "Recursion residual": f"||sum_j f_j||, the error left when the first-order part is undone: {_ALONG}.",
    "Recursion bound": "sum_j eta_j sigma_j ||Delta_(j-1)||, the proved bound on that residual, with sigma_j from "
    f"{SIGMA_STEPS} Lanczos steps (from below, by little): {_ALONG}.",
    "Recursion error": "||Delta_SGD - first order - residual||, how far SGD left the recursion, which nothing proved "
    f"bounds: {_ALONG}.",
}


def bound_scores(
    trained: Trained,
    original: Trained,
    retrained: Trained,
    request: ForgetRequest,
    records: Records,
    *,
    outcome: Mapping[str, Any],
) -> tuple[Score, ...]:
    """The factors of the bound at the original model, and the true distances.

    The recursion is left out for the retrained model itself, for methods other than GA (alone or un-pruned), where it
    is infinite, and where training was not plain SGD with one mask from the initial weights on: momentum, decay,
    augmentation, a rate that changes, rewinding.

    Args:
        trained: the unlearned model.
        original: the model before, with the seeds of its initial weights and order, and its recipe.
        retrained: the reference.
        request: D_f.
        records: the records of the split.
        outcome: the body of outcome.json: method, options, history.

    Raises:
        MaskError: the initial weights of the original cannot be made again.
    """
    recipe = get_recipe(original.provenance.recipe)
    train = original.split.train
    sample = _sample(records, train)
    terms = bound_terms(original, sample.in_order, records=len(train))
    dense = Architecture.from_json(original.provenance.architecture).build(original.provenance.seeds["initial"])
    start = clone_model(dense)
    if original.mask is not None:
        original.mask.apply_(start)
    error, span = distance(trained.model, retrained.model), distance(retrained.model, start, retrained.mask)
    values = {
        "Distance": error,
        "Relative distance": error / max(span, 1e-30),
        "Distance at theta_0": _first_order_distance(start, original, retrained, request, records, terms.eta, recipe),
        "Bound": terms.product,
        "Bound, linear": terms.product_linear,
        "eta": terms.eta,
        "t": terms.steps,
        "Travelled": terms.travelled,
        "sigma": terms.sigma,
    }
    method = outcome["method"]["name"]
    path = None if method == "Retrain" else _path(original, trained, request, records, outcome, recipe)
    if path is not None:
        run = unroll(dense, *path, sigma_steps=SIGMA_STEPS)
        sizes = (norm(run.residual), run.bound, run.error)
        if all(math.isfinite(size) for size in sizes):
            values |= dict(zip(("Recursion residual", "Recursion bound", "Recursion error"), sizes, strict=True))
    return tuple(
        Score(name, float(value), "", "lower" if "istance" in name else "reference", MEANING[name], SOURCE)
        for name, value in values.items()
    )


def _sample(records: Records, ids: Ids) -> Batches:
    rows = records.rows(ids)
    chosen = rows[epoch_order(records.keys[rows], derive(0, "hessian"), 0)[:HESSIAN_RECORDS]]
    return Batches(records, chosen, batch_size=HESSIAN_RECORDS)


def _first_order_distance(
    start: torch.nn.Module,
    original: Trained,
    retrained: Trained,
    request: ForgetRequest,
    records: Records,
    eta: float,
    recipe: Recipe,
) -> float:
    """||theta_t + eta E n_f / B m grad L_f(theta_0) - theta_retrained||: GA as the proposition has it."""
    rows = records.rows(request.record_ids)
    slope = curvature.gradient(start, Batches(records, rows, batch_size=1024).in_order())
    weights = {name: p.detach() for name, p in curvature.parameters_of(original.model).items()}
    other = {name: p.detach() for name, p in curvature.parameters_of(retrained.model).items()}
    scale = eta * recipe.epochs * len(rows) / recipe.batch_size
    undone = combine(weights, scale, project(slope, original.mask))
    return norm(combine(undone, -1.0, other))


def _path(
    original: Trained,
    trained: Trained,
    request: ForgetRequest,
    records: Records,
    outcome: Mapping[str, Any],
    recipe: Recipe,
) -> tuple[Sequence[Mask | None], Sequence[Batch], Sequence[float]] | None:
    """Masks, batches and rates of the original's training and of the method's steps; None if it was not plain SGD."""
    plain = recipe.momentum == recipe.weight_decay == 0 and recipe.augment == "none" and recipe.schedule == "constant"
    at_init = original.mask is None or original.mask.provenance.schedule == "at-init"
    if not (plain and at_init and recipe.select == "last"):
        return None
    order = original.provenance.seeds["order"]
    steps = list(_epochs(records, original.split.train, recipe.batch_size, recipe.epochs, order))
    masks: list[Mask | None] = [original.mask] * len(steps)
    rates = [recipe.learning_rate] * len(steps)
    options = dict(outcome["method"]["options"])
    name = outcome["method"]["name"]
    if name == "Un-prune":
        name, options = options["method"], dict(options["method_options"] or {})
    if name != "GA" or options.get("momentum") != 0 or options.get("weight_decay") != 0:
        return None
    extra = list(
        _epochs(
            records, request.record_ids, options["batch_size"], options["epochs"],
            derive(outcome["seeds"]["method"], "method", "GA"),
        )
    )  # fmt: skip
    rule = outcome["method"]["options"].get("rule")
    grown = {"influence": trained.mask, "dense": None}.get(str(rule), _union(original.mask, trained.mask))
    steps += extra
    masks += [grown] * len(extra)
    rates += [-float(options["learning_rate"])] * len(extra)
    if original.mask is not None:  # a step of rate 0 drops what the final mask drops
        steps, masks, rates = [*steps, steps[-1]], [*masks, trained.mask], [*rates, 0.0]
    return masks, steps, rates


def _epochs(records: Records, ids: Ids, batch_size: int, epochs: int, seed: int) -> Iterator[Batch]:
    batches = Batches(records, records.rows(ids), batch_size=batch_size)
    for epoch in range(epochs):
        yield from batches.epoch(seed, epoch)


def _union(one: Mask | None, other: Mask | None) -> Mask | None:
    """Weights alive in either; the grown mask is in no file, this is what of it can be known."""
    if one is None or other is None:
        return None
    alive = {name: tensor | other.kept[name] for name, tensor in one.kept.items()}
    return Mask(alive, one.provenance)
