"""Runtime, recipes, the loop, mask-safe steps, predictions."""

from .loop import Fit, cross_entropy, fit
from .masked import MaskKeeper
from .predict import accuracy, predict_logits
from .progress import Progress, ProgressBar
from .recipes import RECIPES, Recipe, recipe
from .runtime import Runtime
from .train import train

__all__ = [
    "RECIPES",
    "Fit",
    "MaskKeeper",
    "Progress",
    "ProgressBar",
    "Recipe",
    "Runtime",
    "accuracy",
    "cross_entropy",
    "fit",
    "predict_logits",
    "recipe",
    "train",
]
