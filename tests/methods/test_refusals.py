"""docs/refusals.md against `check_usable`: in each situation, exactly the methods that its table names refuse."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from expunge.core.errors import ExpungeError
from expunge.core.request import ForgetRequest
from expunge.core.split import Split
from expunge.core.trained import Trained
from expunge.data import correct_labels, forget_class, forget_ids
from expunge.data.records import Records
from expunge.methods import Context, check_usable, get_method, method_class, method_names
from expunge.models import Architecture
from expunge.training import Recipe, Runtime, train

PAGE = Path(__file__).parents[2] / "docs" / "refusals.md"
NAMES = sorted(name for name in method_names() if not method_class(name).trains)


class Case(NamedTuple):
    """What a method is asked to do."""

    trained: Trained
    records: Records
    request: ForgetRequest


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        context.save_for_backward(x)
        return x.tanh()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context, gradient):
        (x,) = context.saved_tensors
        return gradient * (1 - x.tanh() ** 2)


class Smooth(nn.Module):
    """A network that is not piecewise linear."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.classifier = nn.Linear(64, 8), nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(nn.functional.gelu(self.first(x.flatten(1))))


class Once(Smooth):
    """A network without second derivatives: a backward pass written by hand, which cannot be differentiated."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(_Once.apply(self.first(x.flatten(1))))


def _train(records: Records, split: Split, network: Architecture, cpu: Runtime) -> Trained:
    return train(records, split, network, recipe=Recipe(epochs=2, batch_size=64, learning_rate=0.05), runtime=cpu)


def _without_history(dense: Trained) -> Trained:
    provenance = dataclasses.replace(dense.provenance, recipe={}, seeds={}, checkpoints={}, initial_weights="")
    return dataclasses.replace(dense, state={}, provenance=provenance)


def _flags(records: Records, split: Split, cpu: Runtime) -> Case:
    assert records.features is not None
    flags = dataclasses.replace(records, features=(records.features > 100).astype(np.float32).reshape(len(records), -1))
    trained = _train(flags, split, Architecture("mlp", {"widths": (8,)}, flags.input_shape, flags.classes), cpu)
    return Case(trained, flags, forget_class(flags, split, 3))


@pytest.fixture(scope="module")
def cases(
    digits: Records, digits_split: Split, dense: Trained, mlp: Trained, request_20: ForgetRequest, cpu: Runtime
) -> dict[str, Callable[[], Case]]:
    """By the name of the situation in the table."""
    one_class = forget_class(digits, digits_split, 3)
    gone = dataclasses.replace(digits_split, retain_absent=True)
    unvalidated = dataclasses.replace(digits_split, validation=np.array([], dtype=digits_split.validation.dtype))
    first = str(digits_split.retain[0])
    other = int(digits.labels[digits.rows([first])[0]] + 1) % 10
    return {
        "`class`": lambda: Case(dense, digits, one_class),
        "`records`": lambda: Case(dense, digits, request_20),
        "`one record`": lambda: Case(dense, digits, forget_ids(digits, digits_split, [first])),
        "`absent`": lambda: Case(dataclasses.replace(dense, split=gone), digits, one_class),
        "`no validation`": lambda: Case(dataclasses.replace(dense, split=unvalidated), digits, one_class),
        "`no history`": lambda: Case(_without_history(dense), digits, one_class),
        "`flags`": lambda: _flags(digits, digits_split, cpu),
        "`correction`": lambda: Case(dense, digits, correct_labels(digits, digits_split, {first: other})),
        "`perceptron`": lambda: Case(mlp, digits, one_class),
        "`smooth`": lambda: Case(dataclasses.replace(mlp, model=Smooth()), digits, one_class),
        "`once`": lambda: Case(dataclasses.replace(mlp, model=Once()), digits, one_class),
    }


def read_table() -> dict[str, tuple[set[str], str]]:
    """Situation to the methods that refuse, and the reason."""
    rows = re.findall(r"^\| (`[^`]+`)[^|]* \| ([^|]+) \| ([^|]+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    found = {}
    for situation, names, reason in rows:
        if names.startswith("all but "):
            refusing = set(NAMES) - set(names.removeprefix("all but ").split(", "))
        else:
            refusing = set() if names == "none" else set(names.split(", "))
        found[situation] = (refusing, reason)
    return found


TABLE = read_table()


def find_refusals(case: Case, names: Sequence[str] = NAMES) -> set[str]:
    """The methods that refuse the case with their default options."""
    found = set()
    for name in names:
        try:
            check_usable(get_method(name), case.trained, case.records, case.request)
        except ExpungeError:
            found.add(name)
    return found


def test_the_table_has_every_situation_with_methods_and_a_reason(cases: dict[str, Callable[[], Case]]) -> None:
    assert list(TABLE) == list(cases)
    for refusing, reason in TABLE.values():
        assert refusing <= set(NAMES)
        assert len(reason) > 20


@pytest.mark.parametrize("situation", TABLE)
def test_exactly_the_methods_of_the_table_refuse(situation: str, cases: dict[str, Callable[[], Case]]) -> None:
    assert find_refusals(cases[situation]()) == TABLE[situation][0]


@pytest.mark.parametrize("name", ["FT", "GA", "Warnecke-1"])
def test_the_decision_is_that_of_a_run(name: str, cases: dict[str, Callable[[], Case]], cpu: Runtime) -> None:
    """In every situation, `forget` raises where `check_usable` does, and nowhere else."""
    for situation, make in cases.items():
        case = make()
        try:
            get_method(name).forget(case.trained, case.request, Context(case.records, cpu))
            refused = False
        except ExpungeError:
            refused = True
        assert refused == (name in TABLE[situation][0]), situation
