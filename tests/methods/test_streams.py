"""A method gives the same model whether the records are in memory or read item by item from a dataset."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from expunge.core.request import ForgetRequest
from expunge.core.trained import Trained
from expunge.data import forget_class
from expunge.data.records import Records
from expunge.methods import Context, get_method, method_class, method_names
from expunge.methods.registry import options_of
from expunge.training import Runtime

#: Methods that act during training or wrap others are tested in their own files; `patch` has files of its own too.
NAMES = [name for name in method_names() if not method_class(name).trains and name not in ("patch", "then", "Un-prune")]
FEW = {"epochs": 2, "batch_size": 16, "steps": 3, "examples": 2, "attack_steps": 2, "draws": 2, "noise_steps": 3}
CASES: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in NAMES] + [("SalUn", {"legacy": True})]


class Items:
    """Pairs of features and label, as PyTorch's datasets have them."""

    def __init__(self, records: Records) -> None:
        self.records, self.labels = records, records.labels

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        assert self.records.features is not None
        return torch.from_numpy(np.array(self.records.features[row])), int(self.labels[row])


@pytest.fixture(scope="module")
def whole_class(digits: Records, dense: Trained) -> ForgetRequest:
    return forget_class(digits, dense.split, 3)


@pytest.mark.parametrize(("name", "options"), CASES, ids=[f"{name}-{options}" for name, options in CASES])
def test_streamed_records_give_the_same_model(
    name: str, options: dict[str, Any], dense: Trained, digits: Records, whole_class: ForgetRequest, cpu: Runtime
) -> None:
    fields = {field.name: field.default for field in options_of(method_class(name))}
    small = {key: value for key, value in FEW.items() if isinstance(fields.get(key), int)}
    method = get_method(name, **{**small, **options})
    streamed = dataclasses.replace(digits, features=None, stream=Items(digits))
    expected = method.forget(dense, whole_class, Context(digits, cpu, seed=1))
    found = method.forget(dense, whole_class, Context(streamed, cpu, seed=1))
    assert found.trained.hash == expected.trained.hash
    assert found.cost.trained_records == expected.cost.trained_records
