"""The error bound of paper A ([Jia2023]; docs/references.md), measured term by term, and the recursion behind it.

Proposition 2 of paper A: the distance of the GA-unlearned from the retrained weights is
O(eta^2 t ||m (theta_t - theta_0)|| sigma(m)). We measure each factor and publish them apart; sigma(m) is taken as the
spectral norm of the masked Hessian block P H P (the paper's definition picks singular values by coordinate index, which
has no meaning). The product is no bound for a real network: the derivation is first-order around theta_0.
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
from expunge.core.trained import Trained, clone_model
from expunge.models import Architecture
from expunge.training import curvature
from expunge.training.curvature import Batch, Curvature, Vector, combine, lanczos, norm, project
from expunge.training.loop import Objective, cross_entropy
from expunge.training.recipes import get_recipe

LANCZOS_STEPS = 40


@dataclasses.dataclass(frozen=True)
class BoundTerms:
    """The factors of paper A's bound for one model.

    Attributes:
        eta: mean learning rate over the training steps.
        steps: t, training steps.
        travelled: ||m (theta_t - theta_0)||_2 over all parameters (those the mask does not name count in full).
        sigma: spectral norm of the masked Hessian block at the trained weights.
        sigma_residual: what Lanczos left: some eigenvalue lies within this of `sigma`.
        sparsity: of the mask, 0 for a dense model.
        product: eta^2 t travelled sigma, as the proposition prints it.
        product_linear: eta t travelled sigma / 2, what the recursion gives where ||theta_j - theta_0|| grows like j.
        true_distance: ||theta_unlearned - theta_retrained||_2 over alive weights, or None where not given.
    """

    eta: float
    steps: int
    travelled: float
    sigma: float
    sigma_residual: float
    sparsity: float
    product: float
    product_linear: float
    true_distance: float | None


def distance(a: nn.Module, b: nn.Module, mask: Mask | None = None) -> float:
    """||m (theta_a - theta_b)||_2 over all parameters.

    Raises:
        MaskError: the two have other parameters.
    """
    one, two = (plain_parameters(model) for model in (a, b))
    if {n: p.shape for n, p in one.items()} != {n: p.shape for n, p in two.items()}:
        raise MaskError("the two models have other parameters: their weights have no distance", where="bound")
    return norm(project({n: (p - two[n]).detach() for n, p in one.items()}, mask))


def bound_terms(
    trained: Trained,
    batches: Callable[[], Iterable[Batch]],
    *,
    records: int,
    epochs: int | None = None,
    pair: tuple[nn.Module, nn.Module] | None = None,
    seed: int = 0,
) -> BoundTerms:
    """Measure the factors of paper A's bound.

    Args:
        trained: with the seed of its initial weights and its recipe.
        batches: training records for the Hessian; called anew for every product.
        records: how many records it was trained on.
        epochs: epochs that the weights trained for; None: the recipe's, and those to the rewind point once more where
            pruning trained a full recipe after rewinding.
        pair: unlearned and retrained model, for the true distance.
        seed: of the first Lanczos vector.

    Raises:
        MaskError: the initial weights cannot be made again.
    """
    provenance = trained.provenance
    if "initial" not in provenance.seeds or not provenance.recipe:
        raise MaskError("the initial weights and the recipe are needed to say how far training went", where="bound")
    recipe = get_recipe(provenance.recipe)
    start = Architecture.from_json(provenance.architecture).build(provenance.seeds["initial"])
    per_epoch = -(-records // recipe.batch_size)
    if epochs is None:
        full = trained.mask is not None and trained.mask.provenance.details.get("epochs") == "full"
        epochs = recipe.epochs + (recipe.rewind_epoch if full else 0)
    count = epochs * per_epoch
    rates = [recipe.rate(step / per_epoch) for step in range(count)]
    eta = math.fsum(rates) / max(1, count)
    travelled = distance(trained.model, start, trained.mask)
    model = clone_model(trained.model).eval()
    spectrum = lanczos(Curvature(model, batches, trained.mask), steps=LANCZOS_STEPS, seed=seed)
    return BoundTerms(
        eta=eta,
        steps=count,
        travelled=travelled,
        sigma=spectrum.norm,
        sigma_residual=spectrum.residual,
        sparsity=0.0 if trained.mask is None else trained.mask.sparsity,
        product=eta**2 * count * travelled * spectrum.norm,
        product_linear=eta * count * travelled * spectrum.norm / 2,
        true_distance=None if pair is None else distance(*pair, trained.mask),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Unrolled:
    """The masked recursion of paper A after i steps, beside what plain SGD did.

    Attributes:
        change: Delta_i = theta_i - theta_0 of SGD (no momentum, no decay), masked.
        first_order: -eta sum_j m_j g_j, gradients at m_j theta_0.
        residual: sum_j f_j, f_j = -eta m_j H_j Delta_{j-1} with Delta of the recursion; Hessians at m_j theta_0.
        terms: ||f_j|| of every step.
        error: ||change - first_order - residual||, what the expansion to second order leaves out; 0 for a quadratic
            loss.
        bound: sum_j eta_j sigma_j ||Delta_{j-1}||, with sigma_j = ||P H_j P||: the proved bound on ||residual||.
    """

    change: Vector
    first_order: Vector
    residual: Vector
    terms: tuple[float, ...]
    error: float
    bound: float


def unroll(
    model: nn.Module,
    masks: Sequence[Mask | None],
    batches: Sequence[Batch],
    eta: float | Sequence[float],
    *,
    objective: Objective = cross_entropy,
    sigma_steps: int = 30,
) -> Unrolled:
    """Run the recursion behind [Jia2023], proposition 2, with the mask of every step (M_t), and SGD beside it.

    With m_i the mask of step i: Delta_i = m_i (Delta_{i-1} - eta (g_i + H_i Delta_{i-1})), g_i and H_i at m_i theta_0,
    split into the part that is linear in those gradients and the rest. The network of step i is m_i theta_0 + Delta_i:
    a weight that grows starts from its initial value; where a mask drops weights, what they had travelled is dropped.
    For growth the bound of the residual is ours and holds for the recursion only; that SGD stays near the recursion is
    not proved, `error` says how near it stayed.

    Args:
        model: with theta_0; evaluated in evaluation mode, not modified.
        masks: one mask a step, or None for dense steps.
        batches: one batch a step.
        eta: learning rate, or one a step; a negative one ascends.
        objective: mean loss of `B x K` logits.
        sigma_steps: Lanczos steps a Hessian.
    """
    rates = [eta] * len(batches) if isinstance(eta, (int, float)) else list(eta)
    start = clone_model(model).eval()
    runner = clone_model(model).eval()
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
        slope = project(curvature.gradient(start, [batch], objective=objective), mask)
        first, residual, sgd = (project(v, mask) for v in (first, residual, sgd))
        travelled = combine(first, 1.0, residual)
        one = [batch]

        def again(held: list[Batch] = one) -> list[Batch]:
            return held

        matrix = Curvature(start, again, mask, objective=objective)
        step = {name: -rate * tensor for name, tensor in matrix.multiply(travelled).items()}
        terms.append(norm(step))
        sigma = lanczos(matrix, steps=sigma_steps).norm
        bound += abs(rate) * sigma * norm(travelled)
        first, residual = combine(first, -rate, slope), combine(residual, 1.0, step)
        with torch.no_grad():
            for (name, p), begin in zip(plain_parameters(runner).items(), start.parameters(), strict=True):
                p.copy_(begin + sgd[name])
        moving = project(curvature.gradient(runner, [batch], objective=objective), mask)
        sgd = combine(sgd, -rate, moving)
    gap = combine(combine(sgd, -1.0, first), -1.0, residual)
    return Unrolled(sgd, first, residual, tuple(terms), norm(gap), bound)
