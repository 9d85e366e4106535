"""Transfer: what the features of a model are worth for another task, and which source classes they owe it to."""

from .classes import take_classes
from .features import compute_features, find_output_layer
from .influence import ClassInfluence, measure_class_influence
from .target import Transfer, fine_tune, linear_probe

__all__ = [
    "ClassInfluence",
    "Transfer",
    "compute_features",
    "find_output_layer",
    "fine_tune",
    "linear_probe",
    "measure_class_influence",
    "take_classes",
]
