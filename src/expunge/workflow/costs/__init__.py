"""What each method would cost for one model and its data. Importing this does not import torch."""

from .probe import Probe, measure_speed
from .table import MethodCost, estimate_methods, render_costs

__all__ = ["MethodCost", "Probe", "estimate_methods", "measure_speed", "render_costs"]
