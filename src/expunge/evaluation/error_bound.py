"""The factors of the error bound of [Jia2023], proposition 2, and the recursion behind that bound.

Proposition 2: the distance of the GA-unlearned from the retrained weights is
O(eta^2 t ||m (theta_t - theta_0)|| sigma(m)), with m the mask. Each factor is measured and reported separately.
sigma(m) is the spectral norm of the masked Hessian block P H P, because the paper's definition (singular values
selected by coordinate index) is not well defined. For a real network the product is not a proved bound: the derivation
is a first-order expansion around theta_0.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn

from expunge.core.errors import MaskError
from expunge.core.hashing import plain_parameters
from expunge.core.mask import Mask
from expunge.core.show import repr_fields
from expunge.core.trained import Trained, clone_model
from expunge.data.batches import Batch
from expunge.models import Architecture
from expunge.training import curvature
from expunge.training.curvature import Curvature, Vector, combine, lanczos, norm, project
from expunge.training.loop import Objective, cross_entropy
from expunge.training.recipes import get_recipe

LANCZOS_STEPS = 40


@dataclasses.dataclass(frozen=True)
class BoundTerms:
    """The factors of the bound of [Jia2023], proposition 2, for one model.

    Attributes:
        eta: mean learning rate over the training steps.
        steps: t, the number of training steps.
        distance_from_init: ||m (theta_t - theta_0)||_2 over all parameters (parameters without a mask count in full).
        sigma: spectral norm of the masked Hessian block at the trained weights.
        sigma_residual: residual of the Lanczos iteration: some eigenvalue lies within this distance of `sigma`.
        sparsity: sparsity of the mask, 0 for a dense model.
        product: eta^2 t distance_from_init sigma, the bound as the proposition states it.
        product_linear: eta t distance_from_init sigma / 2, the value of the recursion if ||theta_j - theta_0|| grows
            linearly in j.
        true_distance: ||theta_unlearned - theta_retrained||_2 over kept weights, or None if it was not asked for.
    """

    eta: float
    steps: int
    distance_from_init: float
    sigma: float
    sigma_residual: float
    sparsity: float
    product: float
    product_linear: float
    true_distance: float | None


def weight_distance(a: nn.Module, b: nn.Module, mask: Mask | None = None) -> float:
    """||m (theta_a - theta_b)||_2 over all parameters.

    Args:
        a: a model.
        b: a model with the same parameters.
        mask: restricts masked tensors to their kept weights; parameters that it does not name count in full.

    Raises:
        MaskError: the models have different parameters.

    Examples:
        >>> import torch
        >>> from expunge.evaluation import weight_distance
        >>> a, b = torch.nn.Linear(2, 1, bias=False), torch.nn.Linear(2, 1, bias=False)
        >>> _ = torch.nn.init.zeros_(a.weight), b.weight.data.copy_(torch.tensor([[3.0, 4.0]]))
        >>> weight_distance(a, b)
        5.0
    """
    one, two = (plain_parameters(model) for model in (a, b))
    if {n: p.shape for n, p in one.items()} != {n: p.shape for n, p in two.items()}:
        raise MaskError(
            "the two models have different parameters, so their weights have no distance",
            where="bound",
            hint="compare two models of one architecture",
        )
    return norm(project({n: (p - two[n]).detach() for n, p in one.items()}, mask))


def measure_bound_terms(
    trained: Trained,
    batches: Callable[[], Iterable[Batch]],
    *,
    records: int,
    epochs: int | None = None,
    pair: tuple[nn.Module, nn.Module] | None = None,
    seed: int = 0,
) -> BoundTerms:
    """Measure the factors of the bound of [Jia2023], proposition 2.

    Args:
        trained: the model; its provenance has the seed of its initial weights and its recipe.
        batches: returns the training records for the Hessian as pairs of inputs `B x ...` and labels `B`; called once
            for every Hessian-vector product.
        records: number of records it was trained on.
        epochs: number of training epochs; None: those of the recipe, plus those up to the rewind point if pruning
            trained a full recipe after rewinding.
        pair: unlearned and retrained model, for `true_distance`.
        seed: seed of the first Lanczos vector.

    Raises:
        MaskError: the provenance lacks the seed of the initial weights or the recipe.

    Examples:
        >>> import expunge
        >>> from expunge.evaluation import measure_bound_terms
        >>> records = expunge.load_records("digits")
        >>> split = expunge.make_split(records)
        >>> network = expunge.architecture("mlp", records, split, widths=(4,))
        >>> recipe = expunge.Recipe(epochs=1, batch_size=512, learning_rate=0.1)
        >>> trained = expunge.train(records, split, network, recipe=recipe, runtime=expunge.Runtime("cpu"))
        >>> from expunge.data.batches import Batches
        >>> batches = Batches(records, records.rows(split.train)[:64], batch_size=64)
        >>> terms = measure_bound_terms(trained, batches.in_order, records=len(split.train))
        >>> terms.steps, terms.distance_from_init > 0, terms.sigma > 0
        (3, True, True)
    """
    provenance = trained.provenance
    if "initial" not in provenance.seeds or not provenance.recipe:
        raise MaskError(
            "the initial weights and the recipe are needed to measure the distance from initialisation", where="bound"
        )
    recipe = get_recipe(provenance.recipe)
    start = Architecture.from_json(provenance.architecture).build(provenance.seeds["initial"])
    per_epoch = -(-records // recipe.batch_size)
    if epochs is None:
        full = trained.mask is not None and trained.mask.provenance.details.get("epochs") == "full"
        epochs = recipe.epochs + (recipe.rewind_epoch if full else 0)
    count = epochs * per_epoch
    rates = [recipe.rate(step / per_epoch, per_epoch) for step in range(count)]
    eta = math.fsum(rates) / max(1, count)
    distance_from_init = weight_distance(trained.model, start, trained.mask)
    model = clone_model(trained.model).eval()
    spectrum = lanczos(Curvature(model, batches, trained.mask), steps=LANCZOS_STEPS, seed=seed)
    return BoundTerms(
        eta=eta,
        steps=count,
        distance_from_init=distance_from_init,
        sigma=spectrum.norm,
        sigma_residual=spectrum.residual,
        sparsity=0.0 if trained.mask is None else trained.mask.sparsity,
        product=eta**2 * count * distance_from_init * spectrum.norm,
        product_linear=eta * count * distance_from_init * spectrum.norm / 2,
        true_distance=None if pair is None else weight_distance(*pair, trained.mask),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class UnrolledRecursion:
    """The masked recursion of [Jia2023] after i steps, compared with plain SGD.

    Attributes:
        change: Delta_i = theta_i - theta_0 of SGD (no momentum, no decay), masked.
        first_order: -eta sum_j m_j g_j, gradients at m_j theta_0.
        residual: sum_j f_j, f_j = -eta m_j H_j Delta_{j-1} with Delta of the recursion; Hessians at m_j theta_0.
        terms: ||f_j|| of every step.
        error: ||change - first_order - residual||, the error of the second-order expansion; 0 for a quadratic loss.
        bound: sum_j eta_j sigma_j ||Delta_{j-1}||, with sigma_j = ||P H_j P||: the proved bound on ||residual||.
    """

    change: Vector
    first_order: Vector
    residual: Vector
    terms: tuple[float, ...]
    error: float
    bound: float

    __repr__ = repr_fields


def unroll(
    model: nn.Module,
    masks: Sequence[Mask | None],
    batches: Sequence[Batch],
    eta: float | Sequence[float],
    *,
    objective: Objective = cross_entropy,
    sigma_steps: int = 30,
) -> UnrolledRecursion:
    """Run the recursion behind [Jia2023], proposition 2, with one mask a step, and plain SGD for comparison.

    With m_i the mask of step i: Delta_i = m_i (Delta_{i-1} - eta (g_i + H_i Delta_{i-1})), where gradient g_i and
    Hessian H_i are taken at m_i theta_0. Delta is split into the part that is linear in the gradients and the residual.
    The network of step i is m_i theta_0 + Delta_i: a regrown weight starts from its initial value, and a newly pruned
    weight loses its Delta. The bound on the residual for masks that change is an extension of this project, not of the
    paper; it holds for the recursion only. That SGD stays near the recursion is not proved; `error` measures it.

    Args:
        model: has the weights theta_0; used in evaluation mode, not modified.
        masks: one mask a step, or None for dense steps.
        batches: one batch a step: inputs `B x ...` and labels `B`.
        eta: learning rate, or one a step; a negative rate ascends.
        objective: mean loss of `B x K` logits.
        sigma_steps: number of Lanczos steps for each Hessian.
    """
    rates = [eta] * len(batches) if isinstance(eta, (int, float)) else list(eta)
    start = clone_model(model).eval()
    sgd_model = clone_model(model).eval()
    applied: Mask | None = None
    zero = {name: torch.zeros_like(p) for name, p in curvature.parameters_of(start).items()}
    first, residual, sgd = dict(zero), dict(zero), dict(zero)
    terms: list[float] = []
    bound = 0.0
    for mask, batch, rate in zip(masks, batches, rates, strict=True):
        if mask is not applied:
            start, applied = clone_model(model).eval(), mask
            if mask is not None:
                mask.apply_(start)
        gradient = project(curvature.gradient(start, [batch], objective=objective), mask)
        first, residual, sgd = (project(v, mask) for v in (first, residual, sgd))
        change = combine(first, 1.0, residual)
        single = [batch]

        def repeat_batch(stored: list[Batch] = single) -> list[Batch]:
            return stored

        hessian = Curvature(start, repeat_batch, mask, objective=objective)
        step = {name: -rate * tensor for name, tensor in hessian.multiply(change).items()}
        terms.append(norm(step))
        sigma = lanczos(hessian, steps=sigma_steps).norm
        bound += abs(rate) * sigma * norm(change)
        first, residual = combine(first, -rate, gradient), combine(residual, 1.0, step)
        with torch.no_grad():
            for (name, p), begin in zip(plain_parameters(sgd_model).items(), start.parameters(), strict=True):
                p.copy_(begin + sgd[name])
        sgd_gradient = project(curvature.gradient(sgd_model, [batch], objective=objective), mask)
        sgd = combine(sgd, -rate, sgd_gradient)
    gap = combine(combine(sgd, -1.0, first), -1.0, residual)
    return UnrolledRecursion(sgd, first, residual, tuple(terms), norm(gap), bound)
