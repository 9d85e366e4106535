"""What Replay costs: the epochs on D_r, and those on D where they are not stored."""

from __future__ import annotations

import pytest

from expunge.core.request import ForgetRequest
from expunge.core.trained import Trained
from expunge.data.records import Records
from expunge.methods import Context, get_method
from expunge.training import Runtime


@pytest.mark.parametrize("epochs", [1, 2])
@pytest.mark.parametrize("prefix", ["recomputed", "compressed"])
def test_both_runs_are_counted(
    mlp: Trained, digits: Records, request_20: ForgetRequest, cpu: Runtime, prefix: str, epochs: int
) -> None:
    method = get_method("Replay", prefix=prefix, prefix_epochs=epochs, epochs=0)
    cost = method.forget(mlp, request_20, Context(digits, cpu)).cost
    everything, forgotten = len(mlp.split.train), len(request_20.record_ids)
    assert cost.trained_records == epochs * (everything + everything - forgotten)


@pytest.mark.parametrize(("rest", "epochs"), [(0, 1), (1, 1), (3, 3)])
def test_going_back_costs_the_first_epochs_on_all_records_and_the_rest_on_the_retained(
    mlp: Trained, digits: Records, request_20: ForgetRequest, cpu: Runtime, rest: int, epochs: int
) -> None:
    """The recipe has two epochs, so one remains after the first, unless `rest` says otherwise."""
    assert mlp.provenance.recipe["epochs"] == 2
    method = get_method("Rewind", prefix="recomputed", prefix_epochs=1, rest=rest)
    outcome = method.forget(mlp, request_20, Context(digits, cpu))
    cost, everything = outcome.cost, len(mlp.split.train)
    assert "the checkpoint of epoch 1 (recomputed; it has seen them)" in outcome.trained.provenance.history[-1]
    assert cost.trained_records == everything + epochs * (everything - len(request_20.record_ids))
