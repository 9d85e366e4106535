"""Un-pruning [Xiao2025]: a method around another method that recomputes the mask from the retain set.

How the mask is recomputed is a rule: one class in `rules`, or one that another package registers.
"""

from .method import Unprune
from .rule import GrowthRule, UnpruneRule, get_rule, register_rule, rule_names

__all__ = ["GrowthRule", "Unprune", "UnpruneRule", "get_rule", "register_rule", "rule_names"]
