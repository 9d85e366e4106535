"""Recipes: the hyper-parameters of training, by name, or read from what other tools record. See docs/recipes.md."""

from .named import RECIPES, get_recipe
from .recipe import Recipe, count_epochs
from .torch_objects import from_torch
from .training_arguments import from_training_arguments

__all__ = ["RECIPES", "Recipe", "count_epochs", "from_torch", "from_training_arguments", "get_recipe"]
