"""`then` and `Un-prune` ask the methods in them everything that `expunge check` asks a method."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import pytest

from expunge.core.errors import ConfigError, MethodError
from expunge.core.request import ForgetRequest
from expunge.core.trained import Trained
from expunge.data.records import Records
from expunge.methods import Method, get_method
from expunge.methods.ft import FT
from expunge.sparsity import get_schedule
from expunge.training import Recipe

AROUND: dict[str, dict[str, Any]] = {
    "then": {"steps": ["GA", "FT"]},
    "Un-prune": {"method": "FT"},
    "both": {"steps": ["GA", {"name": "Un-prune", "options": {"method": "FT"}}]},
}
#: What `check` asks before anything runs, and arguments.
QUESTIONS = ("check_state", "check_recipe", "check_request", "check_pruning", "unsupported_reason", "needed_curvature")


def make(around: str) -> Method:
    return get_method("then" if around == "both" else around, **AROUND[around])


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("around", AROUND)
def test_the_method_inside_is_asked(
    question: str, around: str, sparse: Trained, digits: Records, request_20: ForgetRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    given = {
        "check_state": (sparse,), "check_recipe": (Recipe(epochs=3),), "check_pruning": ("one-shot", False),
        "check_request": (sparse.model, sparse.mask, request_20, digits),
        "unsupported_reason": (sparse.model, digits), "needed_curvature": (get_schedule("one-shot"),),
    }[question]  # fmt: skip
    getattr(make(around), question)(*given)  # FT has nothing against it
    seen: list[tuple[Any, ...]] = []

    def refuse(self: FT, *arguments: Any) -> None:
        seen.append(arguments)
        raise MethodError("asked")

    monkeypatch.setattr(FT, question, refuse)
    with pytest.raises(MethodError, match="asked"):
        getattr(make(around), question)(*given)
    assert seen == [given]


def test_all_questions_are_tried() -> None:
    """A new check of the base class is forwarded by both."""
    asked = {
        name
        for name, value in vars(Method).items()
        if not name.startswith("_") and inspect.isfunction(value) and name.startswith(("check_", "unsupp", "needed"))
    }
    assert asked == {*QUESTIONS, "check_retained"}  # which asks `reads_retained`, forwarded by both


def test_options_of_a_step_that_the_recipe_refuses() -> None:
    """Replay of 20 epochs of a recipe that has 3: found before anything is trained."""
    for around in (
        get_method("Replay", prefix_epochs=20),
        get_method("MSA", prefix_epochs=20),
        get_method("Rewind", prefix_epochs=20),
        get_method("then", steps=["GA", {"name": "Replay", "options": {"prefix_epochs": 20}}]),
    ):
        with pytest.raises(ConfigError, match="not a number of epochs of a recipe of 3"):
            around.check_recipe(Recipe(epochs=3))
        around.check_recipe(Recipe(epochs=30))
    with pytest.raises(MethodError, match="no epoch of the recipe remains after epoch 3"):
        get_method("Rewind", prefix_epochs=3).check_recipe(Recipe(epochs=3))


def test_a_state_without_what_the_replay_methods_need(mlp: Trained) -> None:
    """Each check says what is missing, as the run does."""
    lacks = {
        "recipe of the original model is not recorded": {"recipe": {}},
        "order of records is not recorded": {"seeds": {"initial": 5}},
        "initial weights nor their seed": {"seeds": {"order": 5}},
    }
    for message, fields in lacks.items():
        trained = dataclasses.replace(mlp, provenance=dataclasses.replace(mlp.provenance, **fields))
        for name in ("Replay", "MSA", "Rewind"):
            with pytest.raises(MethodError, match=message):
                get_method(name, prefix_epochs=1).check_state(trained)
            inside = get_method("then", steps=[{"name": name, "options": {"prefix_epochs": 1}}])
            with pytest.raises(MethodError, match=message):
                inside.check_state(trained)


def test_the_larger_need_of_two_steps() -> None:
    """A step that needs the Hessian needs more of a network than one that needs Gauss-Newton products."""
    hessian = {"name": "IU", "options": {"curvature": "hessian"}}
    for steps in (["IU", hessian], [hessian, "IU"], [hessian], ["FT", hessian]):
        assert get_method("then", steps=steps).needed_curvature(None) == "hessian"
    assert get_method("then", steps=["FT", "IU"]).needed_curvature(None) == "gauss-newton"
    assert get_method("then", steps=["FT", "GA"]).needed_curvature(None) is None


def test_a_chain_on_a_dense_model() -> None:
    """Un-prune only runs its inner method there, in a chain too: FT needs no second derivatives."""
    influence = {"name": "Un-prune", "options": {"rule": "influence", "method": "FT"}}
    steps = get_method("then", steps=["GA", influence])
    assert steps.needed_curvature(get_schedule("one-shot")) == "gauss-newton"
    alone = steps.for_dense_model()
    assert alone.needed_curvature(None) is None
    assert [method.name for method in alone.list_methods()] == ["GA", "FT"]
