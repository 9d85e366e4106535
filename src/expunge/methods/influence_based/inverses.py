"""The inverses of IU: how (C + damping I)^-1 v is computed, and which options each way uses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from expunge.data.batches import Batch
from expunge.methods.task import Task
from expunge.training.curvature import (
    Curvature,
    Solution,
    Vector,
    block_diagonal_solve,
    conjugate_gradient,
    fisher_passes,
    kronecker_factors,
    lanczos,
    lissa,
)

from .influence_options import InfluenceOptions

#: Passes over its records that a product with the curvature counts (benchmarks/curvature.py measures 1.9 and 3.5).
PRODUCT_PASSES = {"gauss-newton": 2, "hessian": 4}
#: Further passes of Kronecker factors, for the second moments of patches (it measures 7.2 in all with sampled labels).
MOMENT_PASSES = 6
#: Products that measure the largest eigenvalue for LiSSA.
LANCZOS_STEPS = 10


@dataclasses.dataclass(frozen=True)
class Inverse:
    """One way to compute the step.

    Attributes:
        uses: options of IU that have an effect.
        takes_products: whether it multiplies with the curvature, which needs derivatives of derivatives.
        solve: `(options, task, v) -> Solution`; it counts the records that it reads.
        count_passes: `(options, classes, layers) -> passes over its records`, at most.
    """

    uses: tuple[str, ...]
    takes_products: bool
    solve: Callable[[InfluenceOptions, Task, Vector], Solution]
    count_passes: Callable[[InfluenceOptions, int, int], int]


def _curvature(options: InfluenceOptions, task: Task) -> Curvature:
    rows = options.sample(task, options.records)

    def batches() -> Iterator[Batch]:
        return options.read_counted(task, rows, PRODUCT_PASSES[options.curvature])

    return Curvature(
        task.model, batches, mask=task.mask, matrix_type=options.curvature, damping=options.damping
    )  # fmt: skip


def _solve_cg(options: InfluenceOptions, task: Task, v: Vector) -> Solution:
    return conjugate_gradient(_curvature(options, task), v, steps=options.steps, tolerance=options.tolerance)


def _solve_block_diagonal(options: InfluenceOptions, task: Task, v: Vector) -> Solution:
    return block_diagonal_solve(_curvature(options, task), v, steps=options.steps, tolerance=options.tolerance)


def _solve_lissa(options: InfluenceOptions, task: Task, v: Vector) -> Solution:
    matrix = _curvature(options, task)
    scale = options.lissa_scale or 2.0 * lanczos(matrix, steps=LANCZOS_STEPS, seed=task.seed).norm
    return lissa(matrix, v, steps=options.lissa_steps, scale=scale)


def _solve_kfac(options: InfluenceOptions, task: Task, v: Vector) -> Solution:
    passes = fisher_passes(options.fisher, task.context.records.classes) + MOMENT_PASSES
    batches = options.read_counted(task, options.sample(task, options.records), passes)
    factors = kronecker_factors(task.model, batches, kind=options.fisher, mask=task.mask, seed=task.seed)
    return factors.solve(v, damping=options.damping)


def _count_cg(options: InfluenceOptions, classes: int, layers: int) -> int:
    return (options.steps + 1) * PRODUCT_PASSES[options.curvature]


def _count_blocks(options: InfluenceOptions, classes: int, layers: int) -> int:
    return layers * _count_cg(options, classes, layers)


def _count_lissa(options: InfluenceOptions, classes: int, layers: int) -> int:
    products = options.lissa_steps + (0 if options.lissa_scale else LANCZOS_STEPS)
    return products * PRODUCT_PASSES[options.curvature]


def _count_kfac(options: InfluenceOptions, classes: int, layers: int) -> int:
    return fisher_passes(options.fisher, classes) + MOMENT_PASSES


_SHARED = ("records", "damping")

INVERSES: dict[str, Inverse] = {
    "cg": Inverse((*_SHARED, "curvature", "steps", "tolerance"), True, _solve_cg, _count_cg),
    "lissa": Inverse((*_SHARED, "curvature", "lissa_steps", "lissa_scale"), True, _solve_lissa, _count_lissa),
    "kfac": Inverse((*_SHARED, "fisher"), False, _solve_kfac, _count_kfac),
    "block-diagonal": Inverse(
        (*_SHARED, "curvature", "steps", "tolerance"), True, _solve_block_diagonal, _count_blocks
    ),
}
