"""An interrupted method that is resumed gives the same result."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from expunge.core.errors import FileError, Interrupted
from expunge.core.request import ForgetRequest
from expunge.core.trained import Trained
from expunge.data.records import Records
from expunge.methods import Context, get_method
from expunge.sparsity import Pruning, prune
from expunge.training import Runtime, loop


@pytest.fixture(scope="module")
def context(digits: Records, cpu: Runtime) -> Context:
    return Context(digits, cpu, seed=1)


class Clock:
    now = 0.0

    def perf_counter(self) -> float:
        self.now += 1.0
        return self.now


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Retrain", {}),
        ("FT", {"epochs": 4, "batch_norm": "re-estimate"}),
        ("GA", {"epochs": 4, "batch_size": 8}),
        ("RL", {"epochs": 4}),
        ("l1-sparse", {"epochs": 4, "step": "proximal", "gamma": 0.1}),
    ],
)
def test_an_interrupted_method_resumes(
    name: str,
    options: dict[str, Any],
    sparse: Trained,
    request_20: ForgetRequest,
    context: Context,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(loop, "time", Clock())
    method, path = get_method(name, **options), tmp_path / "c"
    expected = method.forget(sparse, request_20, context)

    def stop(label: str, done: int, total: int, info: dict[str, Any]) -> None:
        if info["epoch"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match=f"{name} was interrupted in epoch 3"):
        method.forget(sparse, request_20, dataclasses.replace(context, checkpoint=path, progress=stop))
    assert path.exists()
    if name == "l1-sparse":
        other = get_method(name, **{**options, "gamma": 0.2})
        with pytest.raises(FileError, match="belongs to another run"):
            other.forget(sparse, request_20, dataclasses.replace(context, checkpoint=path))
    resumed = method.forget(sparse, request_20, dataclasses.replace(context, checkpoint=path))
    assert resumed.trained.hash == expected.trained.hash
    assert resumed.history == expected.history
    assert not path.exists()


def test_pruned_and_retrained_have_the_same_topology(
    dense: Trained, digits: Records, cpu: Runtime, request_20: ForgetRequest, context: Context
) -> None:
    sparse = prune(dense, Pruning(sparsity=0.5), Context(digits, cpu))
    outcome = get_method("Retrain").forget(sparse, request_20, context)
    assert sparse.mask is not None
    assert outcome.trained.mask is not None
    assert outcome.trained.mask.hash() == sparse.mask.hash()
    assert sparse.mask.count_violations(outcome.trained.model) == {}
