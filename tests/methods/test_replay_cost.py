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
