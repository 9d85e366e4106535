"""Every method of the folder runs inside Un-prune, and keeps pruned weights at +0.0."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from expunge.core.errors import RequestError
from expunge.core.request import ForgetRequest
from expunge.core.trained import Trained
from expunge.data import correct_labels
from expunge.data.records import Records
from expunge.methods import Context, get_method
from expunge.training import Runtime

INNER: dict[str, dict[str, Any]] = {
    "PBU": {"epochs": 1},
    "JiT": {"draws": 2},
    "PGU": {"epochs": 2, "kept": 0.9},
    "L2UL": {"examples": 1, "attack_steps": 1, "epochs": 2},
    "Warnecke-1": {"tau": 1e-3},
    "Warnecke-2": {"steps": 2},
    "NTK": {"steps": 2},
}


@pytest.mark.parametrize("name", INNER)
def test_inside_unpruning(name: str, sparse: Trained, digits: Records, request_20: ForgetRequest, cpu: Runtime) -> None:
    method = get_method("Un-prune", rule="gradient", method=name, method_options=INNER[name])
    outcome = method.forget(sparse, request_20, Context(digits, cpu, seed=1))
    mask, model = outcome.trained.mask, outcome.trained.model
    assert mask is not None
    assert mask.count_violations(model) == {}
    for path, kept in mask.kept.items():
        pruned = model.get_parameter(path).detach()[~kept]
        assert not torch.signbit(pruned).any()
    assert {"mask", "weights"} <= set(outcome.rewrote)


def test_unpruning_does_not_correct(sparse: Trained, digits: Records, cpu: Runtime) -> None:
    first = str(sparse.split.retain[0])
    request = correct_labels(digits, sparse.split, {first: int(digits.labels[digits.rows([first])[0]] + 1) % 10})
    method = get_method("Un-prune", rule="gradient", method="Warnecke-1")
    with pytest.raises(RequestError, match="it cannot correct them"):
        method.forget(sparse, request, Context(digits, cpu))
