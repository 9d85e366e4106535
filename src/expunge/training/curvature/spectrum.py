"""The largest eigenvalues of a curvature matrix."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch

from expunge.core.show import repr_fields

from .products import Curvature
from .vectors import Vector, combine, dot, draw_vector, norm

#: A unit vector with less than this along others is orthogonal to them; one with less than that beside them is not new.
_ORTHOGONAL, _NEW = 1e-3, 0.5


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """Extreme eigenvalues of a symmetric matrix.

    Attributes:
        norm: largest absolute eigenvalue (the spectral norm).
        eigenvalues: the Ritz values, ascending; the outer ones converge first. Those with a large residual are no
            eigenvalues yet.
        residual: ||C q - lambda q|| of the Ritz pair of `norm`: an eigenvalue lies within this distance of lambda, if
            the products are exact.
        products: number of matrix-vector products.
        residuals: the same of each Ritz value.
    """

    norm: float
    eigenvalues: tuple[float, ...]
    residual: float
    products: int
    residuals: tuple[float, ...] = ()

    __repr__ = repr_fields


def lanczos(matrix: Curvature, *, steps: int = 30, seed: int = 0, tolerance: float = 1e-4) -> Spectrum:
    """Compute the spectral norm of the (masked) curvature by the Lanczos method with full reorthogonalisation.

    Stops when the residual bound of the outermost Ritz pair, |beta_k e_k^T s|, is below `tolerance` times its value.
    The others may not have converged then; with a tolerance of 0, it takes all steps, unless products lead to no new
    direction: then the start can find no further eigenvalue.
    """
    first = draw_vector(matrix.parameters, seed, matrix.mask)
    flat = torch.cat([tensor.reshape(-1) for tensor in first.values()])
    if not flat.any():  # a mask that keeps nothing
        return Spectrum(0.0, (0.0,), 0.0, 0, (0.0,))
    basis = (flat / flat.double().norm().to(flat.dtype))[None]  # one row per Lanczos vector
    alphas: list[float] = []
    betas: list[float] = []
    best, residual = 0.0, math.inf
    for step in range(max(1, steps)):
        product = matrix.multiply(_unflatten(basis[-1], first))
        w = torch.cat([product[name].reshape(-1) for name in first])
        alphas.append(float(w.double() @ basis[-1].double()))
        for _ in range(2):  # twice is enough
            w = w - basis.T @ (basis @ w)
        beta = float(w.double().norm())
        values, vectors = np.linalg.eigh(np.diag(alphas) + np.diag(betas, 1) + np.diag(betas, -1))
        outer = int(np.argmax(np.abs(values)))
        best, residual = abs(float(values[outer])), beta * abs(float(vectors[-1, outer]))
        converged = tolerance > 0 and residual <= tolerance * max(best, 1e-30)
        if converged or step == steps - 1 or beta < 1e-12:
            break
        direction = _find_direction(w / beta, basis)
        if direction is None:
            break
        betas.append(beta)
        basis = torch.cat([basis, direction[None]])
    residuals = tuple(beta * abs(float(last)) for last in vectors[-1])
    return Spectrum(best, tuple(float(v) for v in values), residual, len(alphas), residuals)


def _find_direction(direction: torch.Tensor, basis: torch.Tensor) -> torch.Tensor | None:
    """The direction if it is orthogonal to the basis, or what of it is; None if it lies in the basis but for rounding.

    What is left of a product in an exhausted space is rounding. Normalised, it can lie among the earlier vectors; with
    it, eigenvalues would be found that do not exist.
    """
    if float((basis @ direction).norm()) < _ORTHOGONAL:
        return direction
    for _ in range(2):
        direction = direction - basis.T @ (basis @ direction)
    length = float(direction.double().norm())
    return None if length < _NEW else direction / length


def _unflatten(flat: torch.Tensor, like: Vector) -> Vector:
    parts = flat.split([tensor.numel() for tensor in like.values()])
    return {name: part.view_as(like[name]) for (name, part) in zip(like, parts, strict=True)}


def power_iteration(matrix: Curvature, *, steps: int = 100, seed: int = 0, tolerance: float = 1e-4) -> Spectrum:
    """Compute the spectral norm by power iteration; slower than `lanczos`, and a check on it."""
    v = draw_vector(matrix.parameters, seed, matrix.mask)
    value, residual, done = 0.0, math.inf, 0
    for step in range(max(1, steps)):
        size = norm(v)
        if size == 0:
            return Spectrum(0.0, (0.0,), 0.0, step, (0.0,))
        v = {name: tensor / size for name, tensor in v.items()}
        w = matrix.multiply(v)
        value, done = dot(v, w), step + 1
        residual = norm(combine(w, -value, v))
        if residual <= tolerance * max(abs(value), 1e-30):
            break
        v = w
    return Spectrum(abs(value), (value,), residual, done, (residual,))
