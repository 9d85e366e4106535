"""Options under which a method changes nothing: it says so before it runs, and only if it is so."""

from __future__ import annotations

from typing import Any

import pytest

from expunge.core.trained import Trained
from expunge.data import forget_class
from expunge.data.records import Records
from expunge.methods import Context, Method, get_method, method_names
from expunge.methods.registry import method_class, options_of
from expunge.training import Runtime

#: Options that a method needs for a perceptron, and fewer epochs.
NEEDED: dict[str, dict[str, Any]] = {"MSG": {"layers": ("linear",)}}
NAMES = [name for name in method_names() if method_class(name).idle_if_zero]
DECLARED = [(name, option) for name in NAMES for option in method_class(name).idle_if_zero]


def run(method: Method, trained: Trained, digits: Records, cpu: Runtime) -> bool:
    """Whether the model is that of before."""
    request = forget_class(digits, trained.split, 3)
    outcome = method.forget(trained, request, Context(digits, cpu))
    assert outcome.changed_nothing == bool(outcome.describe_warning()) == (outcome.trained.hash == trained.hash)
    return outcome.changed_nothing


@pytest.mark.parametrize(("name", "option"), DECLARED)
def test_an_option_of_which_0_changes_nothing(
    name: str, option: str, mlp: Trained, digits: Records, cpu: Runtime
) -> None:
    epochs = {"epochs": 1} if "epochs" in {field.name for field in options_of(method_class(name))} else {}
    method = get_method(name, **{**NEEDED.get(name, {}), **epochs, option: 0})
    assert method.find_idle_reason(mlp) == ("0 epochs" if option == "epochs" else f"{option} = 0")
    assert run(method, mlp, digits, cpu)
    assert get_method(name, **NEEDED.get(name, {})).find_idle_reason(mlp) == ""


def test_every_method_of_which_0_epochs_change_nothing_says_so(mlp: Trained, digits: Records, cpu: Runtime) -> None:
    for name in method_names():
        if method_class(name).trains or "epochs" not in {field.name for field in options_of(method_class(name))}:
            continue
        method = get_method(name, **NEEDED.get(name, {}), epochs=0)
        assert run(method, mlp, digits, cpu) == bool(method.find_idle_reason(mlp)), name


def test_running_statistics_may_still_change(dense: Trained, digits: Records, cpu: Runtime) -> None:
    for options, idle in (
        ({"epochs": 0}, True),
        ({"epochs": 0, "batch_norm": "re-estimate"}, False),
        ({"epochs": 1, "learning_rate": 0.0}, False),
        ({"epochs": 1, "learning_rate": 0.0, "batch_norm": "frozen"}, True),
    ):
        method = get_method("FT", **options)
        assert run(method, dense, digits, cpu) == bool(method.find_idle_reason(dense)) == idle


def test_methods_around_others(mlp: Trained, sparse: Trained) -> None:
    nothing, something = {"name": "GA", "options": {"epochs": 0}}, {"name": "FT", "options": {"epochs": 1}}
    assert get_method("then", steps=(nothing, nothing)).find_idle_reason(mlp) == "GA: 0 epochs; GA: 0 epochs"
    assert get_method("then", steps=(nothing, something)).find_idle_reason(mlp) == ""
    around = get_method("Un-prune", method="GA", method_options={"epochs": 0})
    assert around.find_idle_reason(mlp) == "GA: 0 epochs"
    assert around.find_idle_reason(sparse) == ""
