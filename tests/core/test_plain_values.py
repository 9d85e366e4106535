"""Seeds are integers, and scalars of numpy are the numbers that they hold, in options and recipes."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import expunge
from expunge.core.errors import ConfigError, MethodError
from expunge.core.seeds import derive
from expunge.data.records import Records


@pytest.mark.parametrize("seed", [1.5, None, True, np.True_, [1], "abc", np.float64(1.0)])
def test_other_seeds_than_integers_are_refused(digits: Records, seed: Any) -> None:
    with pytest.raises(ConfigError, match=r"seed: is .*, not an integer"):
        expunge.Context(digits, seed=seed)
    with pytest.raises(ConfigError, match="not an integer"):
        derive(seed, "order")


def test_an_integer_of_numpy_is_the_seed_that_it_holds(digits: Records) -> None:
    context = expunge.Context(digits, seed=np.int64(3))  # type: ignore[arg-type]
    assert type(context.seed) is int
    assert derive(np.int64(3), "order") == derive(3, "order")  # type: ignore[arg-type]
    assert derive(-1, "order") != derive(1, "order")


def test_scalars_of_numpy_are_options_and_fields_of_recipes() -> None:
    method = expunge.get_method("FT", epochs=np.int64(2), learning_rate=np.float64(0.5), only=[np.str_("0")])
    assert method == expunge.get_method("FT", epochs=2, learning_rate=0.5, only=["0"])
    recipe = expunge.Recipe(epochs=np.int64(3), nesterov=np.bool_(True), milestones=[np.float64(0.5)])  # type: ignore[arg-type]
    assert json.dumps(recipe.to_json()) == json.dumps(
        expunge.Recipe(epochs=3, nesterov=True, milestones=(0.5,)).to_json()
    )
    with pytest.raises(MethodError, match="epochs of FT must be int, not float"):
        expunge.get_method("FT", epochs=np.float64(2.0))
