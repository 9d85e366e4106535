"""Curvature of the training loss: products, spectrum, solves; gradients of single records and the Fisher information.

See docs/curvature.md for formulas and costs.
"""

from .fisher import FISHERS, diagonal_fisher, mean_squared_gradients, softmax_root
from .layer_rules import LayerRule, find_rule, register_layer_rule
from .products import (
    CURVATURES,
    BatchSource,
    Curvature,
    check_second_derivatives,
    evaluation_mode,
    gradient,
)
from .records import per_record_gradients
from .solvers import Solution, conjugate_gradient
from .spectrum import Spectrum, lanczos, power_iteration
from .vectors import Vector, combine, dot, draw_vector, norm, parameters_of, project

__all__ = [
    "CURVATURES",
    "FISHERS",
    "BatchSource",
    "Curvature",
    "LayerRule",
    "Solution",
    "Spectrum",
    "Vector",
    "check_second_derivatives",
    "combine",
    "conjugate_gradient",
    "diagonal_fisher",
    "dot",
    "draw_vector",
    "evaluation_mode",
    "find_rule",
    "gradient",
    "lanczos",
    "mean_squared_gradients",
    "norm",
    "parameters_of",
    "per_record_gradients",
    "power_iteration",
    "project",
    "register_layer_rule",
    "softmax_root",
]
