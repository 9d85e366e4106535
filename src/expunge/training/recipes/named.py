"""Recipes by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from expunge.core.errors import ConfigError, unknown_name_hint

from .recipe import Recipe

RECIPES: dict[str, Recipe] = {
    # [Jia2023], defaults of its code: 182 epochs, x0.1 at 91 and 136, the epoch with the best validation accuracy.
    "jia2023": Recipe(
        name="jia2023",
        epochs=182,
        batch_size=256,
        lr_schedule="multistep",
        milestones=(91 / 182, 136 / 182),
        augment="crop-flip",
        select="best",
    ),
    # The defaults of `Recipe`, to be overridden.
    "custom": Recipe(),
    # A short recipe for small networks on CPUs.
    "one-cycle": Recipe(
        name="one-cycle", epochs=20, batch_size=128, lr_schedule="one-cycle", warmup=0.25, nesterov=True
    ),
}


def get_recipe(name: str | Mapping[str, Any] | Recipe = "one-cycle", **overrides: Any) -> Recipe:
    """Return a recipe, with fields replaced.

    Args:
        name: a key of `RECIPES`, a dictionary as `Recipe.to_json` returns it, or a `Recipe`.
        overrides: fields of `Recipe` to replace.

    Raises:
        ConfigError: the recipe or a field is unknown, or a value has the wrong type or is out of range.

    >>> import expunge
    >>> recipe = expunge.get_recipe("one-cycle", epochs=8)
    >>> recipe.epochs, recipe.lr_schedule, recipe.rate(2.0)
    (8, 'one-cycle', 0.1)
    """
    if isinstance(name, Recipe):
        base = name
    elif isinstance(name, Mapping):
        base, overrides = Recipe(), {**name, **overrides}
    elif name in RECIPES:
        base = RECIPES[name]
    else:
        raise ConfigError(f"unknown recipe {name!r}", hint=unknown_name_hint(str(name), RECIPES))
    fields = {f.name for f in dataclasses.fields(Recipe)}
    for key in overrides:
        if key not in fields:
            raise ConfigError(f"a recipe has no field {key!r}", hint=unknown_name_hint(key, fields))
    return dataclasses.replace(base, **overrides)
