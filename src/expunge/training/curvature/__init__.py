"""Curvature of the training loss: products, spectrum, solves; gradients of single records and the Fisher information.

See docs/curvature.md for formulas and costs.
"""

from .fisher import FISHERS, diagonal_fisher, fisher_passes, mean_squared_gradients, softmax_root
from .kronecker import KroneckerFactors, kronecker_factors
from .layer_rules import LayerRule, find_rule, register_layer_rule
from .products import (
    CURVATURES,
    BatchSource,
    Curvature,
    check_second_derivatives,
    evaluation_mode,
    gradient,
    jvp,
)
from .records import per_record_gradients
from .solvers import Solution, block_diagonal_solve, conjugate_gradient, lissa, solve_by_products
from .spectrum import Spectrum, lanczos, power_iteration
from .vectors import Vector, check_finite, combine, dot, draw_vector, norm, parameters_of, project

__all__ = [
    "CURVATURES",
    "FISHERS",
    "BatchSource",
    "Curvature",
    "KroneckerFactors",
    "LayerRule",
    "Solution",
    "Spectrum",
    "Vector",
    "block_diagonal_solve",
    "check_finite",
    "check_second_derivatives",
    "combine",
    "conjugate_gradient",
    "diagonal_fisher",
    "dot",
    "draw_vector",
    "evaluation_mode",
    "find_rule",
    "fisher_passes",
    "gradient",
    "jvp",
    "kronecker_factors",
    "lanczos",
    "lissa",
    "mean_squared_gradients",
    "norm",
    "parameters_of",
    "per_record_gradients",
    "power_iteration",
    "project",
    "register_layer_rule",
    "softmax_root",
    "solve_by_products",
]
