"""Bad input over the registry: records, history or labels that a method needs are not there; steps that diverge.

Every registered method either works all the same, or raises an error of expunge's own that says what is missing.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from expunge.core.errors import DataError, ExpungeError, MethodError, TrainingError
from expunge.core.outcome import Outcome
from expunge.core.request import ForgetRequest
from expunge.core.trained import Trained
from expunge.data import forget_class
from expunge.data.records import Records
from expunge.methods import Context, Method, get_method, method_class, method_names
from expunge.methods.registry import options_of
from expunge.training import Runtime

#: Methods that act during training or wrap others are tested in their own files; `patch` proves, and trains nothing.
NAMES = [name for name in method_names() if not method_class(name).trains and name not in ("patch", "then", "Un-prune")]
FEW = {"epochs": 2, "batch_size": 16, "steps": 3, "examples": 2, "attack_steps": 2, "draws": 2, "noise_steps": 3}
#: Methods that read no record outside D_f.
FORGET_ALONE = {
    "Boundary Expand", "Boundary Shrink", "DELETE", "GA", "JiT", "L2UL", "PBU", "Warnecke-1",
}  # fmt: skip
#: Methods that need neither recipe nor seeds nor the history of the original.
WITHOUT_HISTORY = {
    "Bad Teacher", "Boundary Expand", "Boundary Shrink", "CF-k", "DELETE", "EU-k", "FF", "FT", "Fanchuan", "GA", "IU",
    "JiT", "L2UL", "MSG", "NegGrad+", "PBU", "PGU", "RL", "SCRUB", "SSD", "SalUn", "UNSIR", "l1-sparse", "mask-logit",
}  # fmt: skip


def quick(name: str, **options: Any) -> Method:
    fields = {field.name: field.default for field in options_of(method_class(name))}
    small = {key: value for key, value in FEW.items() if isinstance(fields.get(key), int)}
    return get_method(name, **{**small, **options})


@pytest.fixture(scope="module")
def whole_class(digits: Records, dense: Trained) -> ForgetRequest:
    """A class, which every method can forget."""
    return forget_class(digits, dense.split, 3)


@pytest.mark.parametrize("name", NAMES)
def test_records_outside_the_forget_set_are_asked_for_by_name(
    name: str, dense: Trained, digits: Records, whole_class: ForgetRequest, cpu: Runtime
) -> None:
    rows = np.sort(digits.rows(whole_class.record_ids))
    assert digits.features is not None
    alone = Records(
        digits.name, digits.record_ids[rows], digits.labels[rows], digits.class_names, digits.features[rows]
    )
    method = quick(name)
    if name in FORGET_ALONE:
        assert method.forget(dense, whole_class, Context(alone, cpu)).trained.hash
        return
    with pytest.raises(DataError, match="no such record") as caught:
        method.forget(dense, whole_class, Context(alone, cpu))
    named = str(caught.value.where).rpartition(" ")[2]
    assert named in set(digits.record_ids) - set(alone.record_ids)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_of_unknown_training_is_refused_by_the_methods_that_need_its_history(
    name: str, dense: Trained, digits: Records, whole_class: ForgetRequest, cpu: Runtime
) -> None:
    """No recipe, no seeds, no checkpoints: a state dict that was found somewhere."""
    unknown = dataclasses.replace(
        dense, state={}, provenance=dataclasses.replace(
            dense.provenance, recipe={}, seeds={}, checkpoints={}, initial_weights="",
        ),
    )  # fmt: skip
    method = quick(name)
    if name in WITHOUT_HISTORY:
        assert method.forget(unknown, whole_class, Context(digits, cpu)).trained.hash
        return
    with pytest.raises(MethodError) as caught:
        method.forget(unknown, whole_class, Context(digits, cpu))
    assert caught.value.hint, "the error says what to do"


#: Option that scales the steps of a method, and a value at which the weights or the loss leave float32.
HUGE: dict[str, dict[str, Any]] = {
    "FF": {"alpha": 1e60},
    "IU": {"alpha": 1e40},
    "Warnecke-1": {"tau": 1e40},
    "NTK": {"scale": 1e40},
}
#: The same, with a step that is finite although the weights after it are not.
LARGE = [("Warnecke-1", {"tau": 3e38}), ("NTK", {"scale": 3e38})]
DIVERGING = [
    name for name in NAMES if name in HUGE or "learning_rate" in {f.name for f in options_of(method_class(name))}
]


CASES = [(name, HUGE.get(name, {"learning_rate": 1e30})) for name in DIVERGING] + LARGE


@pytest.mark.parametrize(("name", "options"), CASES, ids=[f"{name}-{options}" for name, options in CASES])
def test_steps_that_leave_the_numbers_stop_with_the_place_or_keep_the_last_good_state(
    name: str, options: dict[str, Any], dense: Trained, digits: Records, whole_class: ForgetRequest, cpu: Runtime
) -> None:
    method = quick(name, **options)
    found: Outcome | ExpungeError
    try:
        found = method.forget(dense, whole_class, Context(digits, cpu))
    except (TrainingError, MethodError) as error:
        found = error
    if isinstance(found, ExpungeError):
        assert found.where, "the error says where"
        return
    state = found.trained.model.state_dict()
    assert all(torch.isfinite(value).all() for value in state.values() if value.is_floating_point())


@pytest.mark.parametrize("labels", [[0, 1, 10], [0, 1, -1]])
def test_labels_out_of_range_are_refused_before_any_method_sees_them(labels: list[int]) -> None:
    with pytest.raises(DataError, match=r"label"):
        Records("digits", ["a", "b", "c"], labels, tuple("0123456789"), np.zeros((3, 2), np.float32))
