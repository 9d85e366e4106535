"""Checks of the fields of a recipe: types and ranges."""

from __future__ import annotations

import math
from typing import Any

from expunge.core.errors import ConfigError, unknown_name_hint

from .rates import LR_SCHEDULES, LR_UPDATES

OPTIMISERS = ("sgd", "adam", "adamw")
#: Parameters without weight decay, by rule.
NO_DECAY: dict[str, str] = {
    "none": "weight decay for all parameters",
    "bias-and-norm": "none for biases and for the parameters of normalisation layers",
    "transformers": "none for biases, LayerNorm and RMSNorm: the rule of `transformers`, which decays BatchNorm",
    "one-dimensional": "none for biases and for all parameters of fewer than two dimensions (the rule of `timm`)",
}


def check_fields(recipe: Any) -> None:
    """Raise ConfigError for the first field of a recipe that has the wrong type or is out of range."""
    milestones = recipe.milestones
    if not isinstance(milestones, (tuple, list)) or not all(isinstance(m, (int, float)) for m in milestones):
        raise ConfigError(f"milestones must be a list of fractions, not {milestones!r}", where="recipe")
    choices: dict[str, Any] = {
        "lr_schedule": LR_SCHEDULES, "lr_update": LR_UPDATES, "optimiser": OPTIMISERS,
    }  # fmt: skip
    for field, known in choices.items():
        value = getattr(recipe, field)
        if not isinstance(value, str) or value not in known:
            hint = unknown_name_hint(str(value), known)
            raise ConfigError(f"unknown {field} {value!r}", where="recipe", hint=hint)
    if recipe.select not in ("best", "last"):
        raise ConfigError(f"select must be `best` or `last`, not {recipe.select!r}", where="recipe")
    expected_types = (
        ("epochs", int), ("batch_size", int), ("warmup_steps", int), ("nesterov", bool), ("keep_moments", bool),
        ("augment", str),
    )  # fmt: skip
    for field, expected in expected_types:
        value = getattr(recipe, field)
        if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
            raise ConfigError(f"{field} must be {expected.__name__}, not {value!r}", where="recipe")
    numbers = ("learning_rate", "momentum", "weight_decay", "lr_decay", "warmup", "rewind", "eps", "label_smoothing")
    for field in numbers if recipe.clip_norm is None else (*numbers, "clip_norm"):
        value = getattr(recipe, field)
        if not _is_number(value):
            raise ConfigError(f"{field} must be a finite number, not {value!r}", where="recipe")
    betas = recipe.betas
    if not isinstance(betas, (tuple, list)) or len(betas) != 2 or not all(map(_is_number, betas)):
        raise ConfigError(f"betas must be two numbers, not {betas!r}", where="recipe")
    ranges = {
        "epochs": (recipe.epochs >= 0, "0 or more"),
        "batch_size": (recipe.batch_size >= 1, "1 or more"),
        "learning_rate": (recipe.learning_rate >= 0, "0 or more"),
        "momentum": (0 <= recipe.momentum < 1, "in [0, 1)"),
        "weight_decay": (recipe.weight_decay >= 0, "0 or more"),
        "lr_decay": (recipe.lr_decay >= 0, "0 or more"),
        "warmup": (0 <= recipe.warmup <= 1, "a fraction in [0, 1]"),
        "rewind": (0 <= recipe.rewind <= 1, "a fraction in [0, 1]"),
        "milestones": (all(0 <= m <= 1 for m in milestones), "fractions in [0, 1]"),
        "betas": (all(0 <= beta < 1 for beta in betas), "two numbers in [0, 1)"),
        "eps": (recipe.eps > 0, "above 0"),
        "warmup_steps": (recipe.warmup_steps >= 0, "0 or more"),
        "clip_norm": (recipe.clip_norm is None or recipe.clip_norm > 0, "above 0, or null for no clipping"),
        "label_smoothing": (0 <= recipe.label_smoothing < 1, "in [0, 1)"),
    }
    for field, (is_valid, allowed) in ranges.items():
        if not is_valid:
            raise ConfigError(f"{field} = {getattr(recipe, field)!r} is out of range", where="recipe", hint=allowed)
    if recipe.warmup and recipe.warmup_steps:
        raise ConfigError(
            "the warm-up is given twice, as a fraction and in steps", where="recipe", hint="leave out warmup"
        )
    if recipe.warmup_steps and recipe.lr_update == "epoch":
        raise ConfigError(
            "a warm-up in steps needs a rate that changes at every step", where="recipe",
            hint="use lr_update: step, or warmup",
        )  # fmt: skip
    if recipe.keep_moments and recipe.keep_epochs in ((), []):
        raise ConfigError("keep_moments needs epochs after which to store them", where="recipe", hint="set keep_epochs")
    _check_no_decay(recipe.no_decay)


def _check_no_decay(value: Any) -> None:
    if isinstance(value, str):
        if value not in NO_DECAY:
            hint = f"{unknown_name_hint(value, NO_DECAY)}; or a list of names of parameters"
            raise ConfigError(f"unknown no_decay {value!r}", where="recipe", hint=hint)
    elif not isinstance(value, (tuple, list)) or not value or not all(isinstance(name, str) for name in value):
        raise ConfigError(
            f"no_decay must be a rule or a list of names of parameters, not {value!r}", where="recipe",
            hint=f"rules: {', '.join(NO_DECAY)}",
        )  # fmt: skip


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
