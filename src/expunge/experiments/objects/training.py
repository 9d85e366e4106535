"""The sections `training` and `runtime`: recipe, device and precision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from expunge.training import Recipe, Runtime


def make_recipe(section: Mapping[str, Any]) -> Recipe:
    """The recipe of the section `training`: a registered one, with the configured fields overridden.

    Raises:
        ConfigError: the recipe or a field is unknown, or a value is wrong; or there are no epochs: a model that was
            not trained has learned nothing that could be forgotten.
    """
    from expunge.core.errors import ConfigError
    from expunge.training.recipes import get_recipe

    recipe = get_recipe(section["recipe"], **{key: value for key, value in section.items() if key != "recipe"})
    if recipe.epochs == 0:
        raise ConfigError(
            "0 epochs: nothing would be learned, so nothing could be forgotten",
            where="training.epochs",
            hint="set the number of epochs that the model is trained for, or was",
        )
    return recipe


def check_ensemble(section: Mapping[str, Any]) -> None:
    """Raise ConfigError unless the recipe can train an ensemble."""
    from expunge.core.errors import ConfigError

    if make_recipe(section).select != "last":
        raise ConfigError(
            "an ensemble uses the last epoch of every model", where="training.select", hint="select: last"
        )


def make_runtime(section: Mapping[str, Any]) -> Runtime:
    """Device and precision of the section `runtime`."""
    from expunge.training.runtime import Runtime

    return Runtime(**section)
