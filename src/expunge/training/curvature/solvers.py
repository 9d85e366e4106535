"""Solutions of C x = b, where C is a curvature matrix."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import torch

from expunge.core.errors import TrainingError
from expunge.core.show import repr_fields
from expunge.data.batches import Batch

from .products import Curvature
from .vectors import Vector, check_finite, combine, dot, norm, project


@dataclasses.dataclass(frozen=True, eq=False)
class Solution:
    """Approximate solution of C x = b.

    Attributes:
        x: the solution.
        residual: ||b - C x|| / ||b||.
        products: number of matrix-vector products.
    """

    x: Vector
    residual: float
    products: int

    __repr__ = repr_fields


def conjugate_gradient(matrix: Curvature, b: Vector, *, steps: int = 20, tolerance: float = 1e-3) -> Solution:
    """Solve C x = b on the kept weights by conjugate gradients, starting from 0.

    Stops early if a direction has no positive curvature: the Hessian of a network is not positive definite in general.
    Use damping or the Gauss-Newton matrix.

    Cost: `steps` products with C. Memory: four vectors in the shape of the parameters.

    Raises:
        TrainingError: b or a product is not finite.
    """
    b = project({name: tensor.detach().clone() for name, tensor in b.items()}, matrix.mask)
    return solve_by_products(matrix.multiply, b, steps=steps, tolerance=tolerance)


def solve_by_products(
    multiply: Callable[[Vector], Vector],
    b: Vector,
    *,
    steps: int,
    tolerance: float,
    precondition: Callable[[Vector], Vector] | None = None,
) -> Solution:
    """Solve C x = b by conjugate gradients, starting from 0; see `conjugate_gradient`.

    Args:
        multiply: `v -> C v`.
        b: the right side.
        steps: largest number of products.
        tolerance: of ||b - C x|| / ||b||.
        precondition: `v -> M v`, where M is positive definite and close to the inverse of C, or None for the identity.

    Raises:
        TrainingError: b or a product is not finite.

    >>> import torch
    >>> from expunge.training.curvature import solve_by_products
    >>> scale = torch.tensor([2.0, 4.0])
    >>> solution = solve_by_products(lambda v: {"w": scale * v["w"]}, {"w": torch.ones(2)}, steps=5, tolerance=1e-6)
    >>> solution.products, solution.x["w"].tolist()
    (2, [0.5, 0.25])
    """
    check_finite(b, "the right side of the system")
    x = {name: torch.zeros_like(tensor) for name, tensor in b.items()}
    r, size = b, norm(b)
    z = r if precondition is None else precondition(r)
    p, rz, rr, products = z, dot(r, z), dot(r, r), 0
    while products < steps and size > 0 and math.sqrt(rr) > tolerance * size:
        cp = multiply(p)
        products += 1
        p_cp = dot(p, cp)
        if not math.isfinite(p_cp):
            check_finite(cp, f"product {products} with the curvature")
        if p_cp <= 0:
            break
        length = rz / p_cp
        x, r = combine(x, length, p), combine(r, -length, cp)
        z = r if precondition is None else precondition(r)
        new = dot(r, z)
        p, rz, rr = combine(z, new / rz, p), new, new if precondition is None else dot(r, r)
    return Solution(x, math.sqrt(rr) / size if size else 0.0, products)


def block_diagonal_solve(matrix: Curvature, b: Vector, *, steps: int = 20, tolerance: float = 1e-3) -> Solution:
    """Solve B x = b by conjugate gradients, where B is C without the entries between different layers.

    Each layer (module) with parameters is a block of its own: its parameters are solved for as if the others were
    fixed.

    Cost: up to `steps` products with C for each layer, which are a little cheaper than those with all of C.

    Raises:
        TrainingError: b or a product is not finite.
    """
    groups: dict[str, list[str]] = {}
    for name in b:
        groups.setdefault(name.rpartition(".")[0], []).append(name)
    x: Vector = {}
    squared, products = 0.0, 0
    for names in groups.values():
        block = dataclasses.replace(matrix, names=tuple(names))
        part = {name: b[name] for name in names}
        found = conjugate_gradient(block, part, steps=steps, tolerance=tolerance)
        x |= found.x
        products += found.products
        squared += (found.residual * norm(project(part, matrix.mask))) ** 2
    size = norm(project(b, matrix.mask))
    return Solution({name: x[name] for name in b}, math.sqrt(squared) / size if size else 0.0, products)


def lissa(matrix: Curvature, b: Vector, *, steps: int, scale: float) -> Solution:
    """Solve C x = b by the recursion of LiSSA [Agarwal2017]_: one batch of `matrix.batches` in each step.

    h_0 = b and h_{j+1} = b + h_j - C_j h_j / scale, with the curvature C_j of the j-th batch, damping included; then
    x = h / scale. In the mean h converges to scale C^-1 b if scale is larger than half of the largest eigenvalue of C;
    that every C_j / scale is at most 1 is sufficient. The error falls by 1 - damping / scale per step at worst, so
    that scale / damping steps and more may be needed.

    Cost: `steps` products with one batch each. The residual is not measured, because it costs a product with C: it is
    NaN.

    Args:
        matrix: C with its batches, which are taken in turn, from the first again after the last.
        b: the right side.
        steps: number of steps.
        scale: see above.

    Raises:
        TrainingError: there are no batches, or the recursion diverges.

    .. [Agarwal2017] Agarwal, Bullins, Hazan: Second-order stochastic optimization for machine learning in linear time,
       JMLR 18, 2017.
    """
    b = project({name: tensor.detach().clone() for name, tensor in b.items()}, matrix.mask)
    check_finite(b, "the right side of the system")
    # ||h|| <= scale ||C^-1 b||, and no eigenvalue of a positive C is below the damping
    limit = norm(b) * max(1.0, scale / matrix.damping if matrix.damping > 0 else math.inf)
    h, done = b, 0
    while done < steps:
        before = done
        for batch in matrix.batches():
            if done == steps:
                break
            one = dataclasses.replace(matrix, batches=functools.partial(_single, batch))
            h = combine(combine(b, 1.0, h), -1.0 / scale, one.multiply(h))
            done += 1
            if not norm(h) <= 2.0 * limit:  # also if it is NaN
                raise TrainingError(
                    f"LiSSA diverges: the norm of its vector is {norm(h):.3g} after {done} steps",
                    where=f"scale {scale:g}",
                    hint="scale must be larger than the largest eigenvalue of the curvature of every batch",
                )
        if done == before:
            raise TrainingError("there are no records to compute the curvature on")
    return Solution({name: tensor / scale for name, tensor in h.items()}, math.nan, done)


def _single(batch: Batch) -> list[Batch]:
    return [batch]
