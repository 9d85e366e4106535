"""Every method with the option `stop` ends when the rule holds, says so, and reads no test record."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from expunge.core.errors import MethodError
from expunge.core.outcome import Outcome
from expunge.core.request import ForgetRequest
from expunge.core.split import Split
from expunge.core.trained import Trained
from expunge.data import forget_class
from expunge.data.records import Records
from expunge.methods import Context, Method, get_method, method_class, method_names
from expunge.methods.composition.stopping import ForgetErrors
from expunge.methods.registry import options_of
from expunge.training import Runtime

#: They have the option from their base class, and refuse it: what they train is not the result.
REFUSE = ("Boundary Expand", "MSA")
NAMES = [
    name for name in method_names()
    if any(field.name == "stop" for field in options_of(method_class(name))) and name not in REFUSE
]  # fmt: skip
#: Rounds without the rule, which asks after each of them.
ROUNDS = 6
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "L2UL": [{"epochs": 2, "examples": 3, "attack_steps": 1, "example_batch_size": 20}],  # a round is a step
    "Replay": [{}, {"scale": 0.0}],
    "SCRUB": [{}, {"rewind": False}],
    "SalUn": [{}, {"legacy": True}],
    "UNSIR": [{"noise_steps": 2, "batch_size": 32}],
}
CASES = [(name, options) for name in NAMES for options in OPTIONS.get(name, [{}])]
IDS = [f"{name}-{options}" for name, options in CASES]


class WithoutTests:
    """The digits as a dataset that refuses to read the records of the test set and the non-members."""

    def __init__(self, records: Records, split: Split) -> None:
        self.records, self.labels = records, records.labels
        self.forbidden = set(records.rows([*split.test, *split.non_members]).tolist())
        self.seen: set[int] = set()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        assert row not in self.forbidden, f"row {row} is in the test set"
        self.seen.add(row)
        assert self.records.features is not None
        return torch.from_numpy(np.array(self.records.features[row])), int(self.labels[row])


@pytest.fixture(scope="module")
def whole_class(digits: Records, dense: Trained) -> ForgetRequest:
    return forget_class(digits, dense.split, 3)


@pytest.fixture
def references(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The references that the rule finds: the forget error reaches the third, but not those before."""
    left = [101.0, 101.0, 0.0]
    measure = ForgetErrors.measure_reference

    def find(self: ForgetErrors, model: torch.nn.Module) -> float:
        measure(self, model)  # reads the validation records
        return left.pop(0) if left else 50.0  # SCRUB asks once more, to rewind

    monkeypatch.setattr(ForgetErrors, "measure_reference", find)
    return left


def make(name: str, options: dict[str, Any], **more: Any) -> Method:
    fields = {field.name for field in options_of(method_class(name))}
    rounds = {"epochs": ROUNDS} if "epochs" in fields else {}
    return get_method(name, **{**rounds, "batch_size": 64, **options, **more})


def measured(outcome: Outcome) -> list[dict[str, Any]]:
    return [entry for entry in outcome.history if "reference_error" in entry]


@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_it_ends_after_the_round_in_which_the_rule_holds(
    name: str, options: dict[str, Any], dense: Trained, digits: Records, whole_class: ForgetRequest, cpu: Runtime,
    references: list[float],
) -> None:  # fmt: skip
    dataset = WithoutTests(digits, dense.split)
    context = Context(dataclasses.replace(digits, features=None, stream=dataset), cpu, seed=1)
    method = make(name, options, stop="validation")
    assert method.needs_validation in ("stop", "rewind")
    outcome = method.forget(dense, whole_class, context)
    assert not references
    entries = measured(outcome)
    assert [entry["reference_error"] for entry in entries] == [101.0, 101.0, 0.0]
    assert entries[-1] is outcome.history[-1], "nothing was trained after it"
    line = outcome.trained.provenance.history[-1]
    assert line.startswith(name)
    assert "; stopped: the forget error (" in line
    assert f"reached that of validation records (0.0 %) in epoch {entries[-1]['epoch']}" in line
    labels = digits.labels[digits.rows(dense.split.validation)]
    used = digits.rows(dense.split.validation)[labels == 3]
    assert set(used.tolist()) <= dataset.seen
    assert not dataset.seen & set(digits.rows(dense.split.validation)[labels != 3].tolist()), "of other classes"


@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_it_does_not_end_before_and_the_checks_change_nothing(
    name: str, options: dict[str, Any], dense: Trained, digits: Records, whole_class: ForgetRequest, cpu: Runtime,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(ForgetErrors, "measure_reference", lambda self, model: 101.0)
    context = Context(digits, cpu, seed=1)
    outcome = make(name, options, stop="validation").forget(dense, whole_class, context)
    assert "stopped" not in outcome.trained.provenance.history[-1]
    if name == "L2UL":  # two epochs of five steps; without the option, a rule of its own ends it
        assert len(measured(outcome)) == len(outcome.history) == 10
        return
    assert len(measured(outcome)) == ROUNDS
    without = make(name, options).forget(dense, whole_class, context)
    assert without.trained.hash == outcome.trained.hash
    assert not any("reference_error" in entry for entry in without.history)


@pytest.mark.parametrize("model", ["dense", "sparse"])
def test_methods_around_others_say_that_they_ended(
    model: str, request: pytest.FixtureRequest, digits: Records, whole_class: ForgetRequest, cpu: Runtime,
    references: list[float],
) -> None:  # fmt: skip
    trained: Trained = request.getfixturevalue(model)
    inner = {"epochs": ROUNDS, "batch_size": 64, "stop": "validation"}
    context = Context(digits, cpu, seed=1)
    method = get_method("Un-prune", method="GA", method_options=inner, rule="magnitude", rounds=1, score_records=32)
    assert method.needs_validation == "stop"
    outcome = method.forget(trained, whole_class, context)
    where = "only GA ran" if model == "dense" else "; GA in round 1"
    assert f"{where}; stopped: the forget error (" in outcome.trained.provenance.history[-1]
    references[:] = [0.0]
    steps = ({"name": "GA", "options": inner}, {"name": "FT", "options": {"epochs": 1}})
    chained = get_method("then", steps=steps).forget(trained, whole_class, context)
    assert "; stopped: the forget error (" in chained.trained.provenance.history[-1]


@pytest.mark.parametrize("name", REFUSE)
def test_methods_whose_training_is_not_the_result_refuse_it(name: str) -> None:
    with pytest.raises(MethodError, match="forget error"):
        get_method(name, stop="validation")


@pytest.mark.parametrize("name", NAMES)
def test_unknown_rules_are_refused(name: str) -> None:
    with pytest.raises(MethodError, match="unknown stop 'validaton'"):
        get_method(name, stop="validaton")
