"""The options of IU."""

from __future__ import annotations

import dataclasses

from .weight_edit import WeightEdit


@dataclasses.dataclass(frozen=True)
class InfluenceOptions(WeightEdit):
    """Options of IU.

    Attributes:
        alpha: length of the step; 1 is the Newton step.
        inverse: `cg` (conjugate gradients), `lissa` (a recursion with one batch a step), `kfac` (Kronecker factors), or
            `block-diagonal` (conjugate gradients for each layer, without the curvature between layers).
        curvature: `gauss-newton` or `hessian`; not for `kfac`.
        damping: added to the diagonal of the curvature.
        steps: largest number of products with the curvature, for `cg`, and for each layer of `block-diagonal`.
        tolerance: the relative residual at which they stop earlier.
        records: number of records of D_r that the curvature is taken on; 0: all.
        fisher: labels of the factors of `kfac`: `exact`, `sampled` or `empirical`.
        lissa_steps: number of steps of `lissa`.
        lissa_scale: divisor of the curvature in `lissa`; 0: twice its largest eigenvalue, measured.
        legacy: the inverse of the released code.
    """

    alpha: float = 1.0
    inverse: str = "cg"
    curvature: str = "gauss-newton"
    damping: float = 0.01
    steps: int = 20
    tolerance: float = 1e-3
    records: int = 1024
    fisher: str = "exact"
    lissa_steps: int = 500
    lissa_scale: float = 0.0
    legacy: bool = False
