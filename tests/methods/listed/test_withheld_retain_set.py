"""Methods that need no retain set run where its records cannot be read."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from expunge.core.request import ForgetRequest
from expunge.core.trained import Trained
from expunge.data.records import Records
from expunge.methods import Context, get_method
from expunge.training import Runtime

QUICK: dict[str, dict[str, Any]] = {
    "PBU": {"epochs": 1},
    "JiT": {"draws": 2},
    "L2UL": {"examples": 1, "attack_steps": 1, "epochs": 2},
    "Warnecke-1": {},
}


class Withheld:
    """The digits as a dataset that refuses to read any record but those it may read; it counts the reads."""

    def __init__(self, records: Records, allowed: set[int]) -> None:
        self.records, self.allowed, self.read = records, allowed, set()
        self.labels = records.labels

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        assert row in self.allowed, f"row {row} of the retain set was read"
        self.read.add(row)
        return torch.from_numpy(self.records.features[row]), int(self.records.labels[row])


def withhold(records: Records, request: ForgetRequest) -> tuple[Records, Withheld]:
    """The records as a stream of which only D_f and row 0 (for its shape) can be read."""
    dataset = Withheld(records, {0, *records.rows(request.record_ids).tolist()})
    return dataclasses.replace(records, features=None, stream=dataset), dataset


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("model", ["dense", "sparse"])
def test_the_retain_set_is_not_read(
    name: str, model: str, request: pytest.FixtureRequest, digits: Records, request_20: ForgetRequest, cpu: Runtime
) -> None:
    trained: Trained = request.getfixturevalue(model)
    records, dataset = withhold(digits, request_20)
    outcome = get_method(name, **QUICK[name]).forget(trained, request_20, Context(records, cpu, seed=1))
    forgotten = set(digits.rows(request_20.record_ids).tolist())
    assert forgotten <= dataset.read <= {0, *forgotten}
    assert outcome.trained.hash != trained.hash
    in_memory = get_method(name, **QUICK[name]).forget(trained, request_20, Context(digits, cpu, seed=1))
    assert in_memory.trained.hash == outcome.trained.hash


def test_a_method_that_reads_it_is_noticed(
    dense: Trained, digits: Records, request_20: ForgetRequest, cpu: Runtime
) -> None:
    """Control."""
    records, _ = withhold(digits, request_20)
    with pytest.raises(Exception, match="of the retain set was read"):
        get_method("FT", epochs=1).forget(dense, request_20, Context(records, cpu))
