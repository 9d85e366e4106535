"""Training: devices, precision and processes, recipes, the training loop, masked optimiser steps, predictions."""

from expunge.core.lazy import import_on_use

from .confidence import TrainingConfidences, measure_training_confidences
from .context import Context
from .loop import Fit, Pass, Steps, cross_entropy, fit, mean_over_records
from .masked import MaskKeeper
from .predict import accuracy, predict_logits
from .progress import Progress, ProgressBar
from .recipes import RECIPES, Recipe, get_recipe
from .runtime import Runtime
from .train import train

__all__ = [
    "RECIPES",
    "Context",
    "Fit",
    "MaskKeeper",
    "Pass",
    "Progress",
    "ProgressBar",
    "Recipe",
    "Runtime",
    "Steps",
    "TrainingConfidences",
    "accuracy",
    "cross_entropy",
    "fit",
    "get_recipe",
    "mean_over_records",
    "measure_training_confidences",
    "predict_logits",
    "train",
]

import_on_use(__name__)
