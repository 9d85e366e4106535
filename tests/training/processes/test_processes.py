"""Training on several processes: the weights of one, masks, resuming on another number, and what goes wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from in_double import Averaging, FailingElsewhere, InDouble, apart, double_cross_entropy
from small_networks import network, random_mask, recipe
from torch import nn

from expunge.core.errors import ConfigError, Interrupted, TrainingError
from expunge.core.request import ForgetRequest
from expunge.core.trained import Trained
from expunge.data.records import Records
from expunge.methods import get_method
from expunge.models import architecture
from expunge.training import Context, Recipe, Runtime, Steps, fit, loop
from expunge.training.processes.team import Team

TWO = Runtime("cpu", devices=2, strategy="ddp")


def children() -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(os.getpid()), "-f", "processes.helper"], capture_output=True, text=True)
    return [int(number) for number in found.stdout.split()]


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Any:
    """After each test: no process, no file, no group, the threads of before."""
    folder, threads = tmp_path_factory.mktemp("temporary"), torch.get_num_threads()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield
    assert children() == []
    assert list(folder.glob("expunge-*")) == []
    assert not dist.is_initialized()
    assert torch.get_num_threads() == threads


def images(count: int) -> Records:
    draw = np.random.default_rng(0)
    features = draw.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    names = tuple("0123456789")
    return Records("images", [f"i{i}" for i in range(count)], draw.integers(0, 10, count), names, features)


def test_resnet20_after_20_steps(cpu: Runtime) -> None:
    """Batches of 5, 5, 5 and 2 of 17 records: parts of 3 and 2, and of 1 and 1; with a mask, and augmented."""
    records = images(17)
    how = Recipe(epochs=5, batch_size=5, learning_rate=0.02, augment="crop-flip", clip_norm=1.0)
    models = [InDouble(architecture("resnet20", records).build(0)) for _ in range(2)]
    mask = random_mask(models[0])
    found = [
        fit(m, np.arange(17), how, Context(records, r, 3), mask=mask, steps=Steps(double_cross_entropy))
        for m, r in zip(models, (cpu, TWO), strict=True)
    ]
    assert apart(*models) < 1e-9
    assert [entry["loss"] for entry in found[1].history] == pytest.approx([e["loss"] for e in found[0].history])
    assert (found[0].trained_records, found[1].trained_records) == (85, 85)
    start = InDouble(architecture("resnet20", records).build(0))
    assert apart(start, models[1]) > 0.01, "it was not trained"
    for name, kept in mask.kept.items():
        pruned = dict(models[1].named_parameters())[name].detach()[~kept]
        assert not pruned.any()
        assert not pruned.signbit().any(), "a pruned weight is +0.0"


class Stop:
    """Interrupts, or does something else, when a number of records was trained."""

    def __init__(self, at: int, do: Any = None) -> None:
        self.at, self.do = at, do

    def __call__(self, label: str, done: int, total: int, info: dict[str, Any]) -> None:
        if done >= self.at:
            self.at = 10**9
            if self.do is None:
                raise KeyboardInterrupt
            self.do()


class Clock:
    """A clock that advances by a second per call, so that progress is reported at every step."""

    now = 0.0

    def perf_counter(self) -> float:
        self.now += 1.0
        return self.now


def train(digits: Records, runtime: Runtime, path: Path | None = None, progress: Any = None, **more: Any) -> nn.Module:
    """Two epochs of 67 records: batches of 32, 32 and 3; dropout, a running mean, momentum, label smoothing."""
    model = nn.Sequential(network(dropout=0.3), Averaging(10))
    more = {"rows": np.arange(67), "mask": random_mask(model), "stop": 2, "label": "run", **more}
    how = recipe(epochs=2, label_smoothing=0.1, nesterov=True)
    fit(model, recipe=how, context=Context(digits, runtime, 4, path, progress), **more)
    return model


@pytest.mark.parametrize(("first", "second"), [(TWO, Runtime("cpu")), (Runtime("cpu"), TWO)])
def test_resumed_on_another_number_of_processes(
    digits: Records, cpu: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: Runtime, second: Runtime
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(loop, "time", Clock())
    expected = train(digits, cpu)
    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(Interrupted, match="epoch 2 of 2") as caught:
        train(digits, first, path, Stop(100))
    assert "resumes after epoch 1" in str(caught.value.hint)
    assert path.exists()
    assert apart(train(digits, second, path), expected) < 2e-6
    assert not path.exists()


def test_a_method_with_three_processes(
    digits: Records, sparse: Trained, request_20: ForgetRequest, cpu: Runtime
) -> None:
    """The last batch has fewer records than there are processes: one of them has nothing."""
    count = len(sparse.split.retain) - 20
    size = next(n for n in range(100, 200) if count % n in (1, 2))
    method = get_method("FT", epochs=1, batch_size=size)
    runtimes = [cpu, Runtime("cpu", devices=3)]
    found = [method.forget(sparse, request_20, Context(digits, r, seed=1)).trained for r in runtimes]
    assert apart(found[0].model, sparse.model) > 0
    assert apart(found[0].model, found[1].model) < 2e-6
    assert sparse.mask is not None
    assert not sparse.mask.count_violations(found[1].model)


def test_statistics_of_parts(digits: Records, cpu: Runtime) -> None:
    """Running means are those of one process, as the mean of means; variances within parts are smaller."""
    models = [network() for _ in range(2)]
    how = recipe(epochs=1, batch_size=64)
    local = Runtime("cpu", devices=2, sync_batchnorm=False)
    for model, runtime in zip(models, (cpu, local), strict=True):
        fit(model, np.arange(64), how, Context(digits, runtime, 4))
    (one, other), count = [model[1] for model in models], 1
    assert torch.allclose(one.running_mean, other.running_mean, atol=1e-6)
    assert not torch.allclose(one.running_var, other.running_var, atol=1e-6)
    assert int(one.num_batches_tracked) == int(other.num_batches_tracked) == count
    assert apart(*models) > 1e-5, "another result"


def test_a_process_that_is_killed(digits: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "time", Clock())

    def kill() -> None:
        os.kill(children()[0], signal.SIGKILL)

    with pytest.raises(TrainingError, match=r"process 2 of 2 was killed by signal 9 \(SIGKILL\)") as caught:
        train(digits, TWO, progress=Stop(1, kill), stop=200)
    assert "memory" in str(caught.value.hint)


def test_an_error_of_another_process_is_raised_here(digits: Records) -> None:
    with pytest.raises(TrainingError, match="ValueError: a mistake in the network"):
        fit(FailingElsewhere(), np.arange(67), recipe(), Context(digits, TWO))


def test_what_is_refused_before_a_process_starts(digits: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Team, "_start", None)
    three = Runtime("cpu", devices=3)
    with pytest.raises(ConfigError, match="3 processes for batches of 2 records") as caught:
        fit(network(), np.arange(60), recipe(batch_size=2), Context(digits, three))
    assert "at most 2" in str(caught.value.hint)
    mixing = nn.Sequential(nn.Flatten(), nn.RReLU(), nn.Linear(64, 10))
    with pytest.raises(TrainingError, match="cannot share a batch"):
        fit(mixing, np.arange(60), recipe(), Context(digits, three))
    with pytest.raises(ConfigError, match="not declared to be a mean over records") as caught:
        fit(network(), np.arange(60), recipe(), Context(digits, three), steps=Steps(lambda a, b: a.sum()))
    assert "mean_over_records" in str(caught.value.hint)
    monkeypatch.setenv("EXPUNGE_HELPER", "1")
    with pytest.raises(ConfigError, match="trains while another process imports it") as caught:
        fit(network(), np.arange(60), recipe(), Context(digits, three))
    assert "__main__" in str(caught.value.hint)
