"""Solutions of C x = b, where C is a curvature matrix."""

from __future__ import annotations

import dataclasses
import math

import torch

from expunge.core.show import repr_fields

from .products import Curvature
from .vectors import Vector, combine, dot, norm, project


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
    """
    b = project({name: tensor.detach().clone() for name, tensor in b.items()}, matrix.mask)
    x = {name: torch.zeros_like(tensor) for name, tensor in b.items()}
    r, size = b, norm(b)
    p, rr, products = r, dot(r, r), 0
    while products < steps and size > 0 and math.sqrt(rr) > tolerance * size:
        cp = matrix.multiply(p)
        products += 1
        p_cp = dot(p, cp)
        if p_cp <= 0:
            break
        length = rr / p_cp
        x, r = combine(x, length, p), combine(r, -length, cp)
        new = dot(r, r)
        p, rr = combine(r, new / rr, p), new
    return Solution(x, math.sqrt(rr) / size if size else 0.0, products)
