"""An interrupted run that is resumed equals an uninterrupted one, bit for bit."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_networks import network, random_mask, recipe, state_hash
from torch import nn

from expunge.core.errors import FileError, Interrupted
from expunge.core.hashing import hash_tensors
from expunge.core.mask import Mask
from expunge.data.records import Records
from expunge.training import Context, Runtime, Steps, fit, loop


class Stop:
    """Raises KeyboardInterrupt after `at` records."""

    def __init__(self, at: int) -> None:
        self.at = at

    def __call__(self, label: str, done: int, total: int, info: dict[str, Any]) -> None:
        if done >= self.at:
            raise KeyboardInterrupt


class Clock:
    """A clock that advances by a second per call, so that progress is reported at every step."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 1.0
        return self.now


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(loop, "time", Clock())


def run(
    digits: Records,
    cpu: Runtime,
    model: nn.Module,
    mask: Mask | None,
    path: Path | None,
    progress: Any = None,
    **more: Any,
) -> loop.Fit:
    scored: list[float] = []

    def validate(m: nn.Module) -> tuple[float, int]:
        scored.append(float(m[5].weight.detach().abs().sum()))
        return 100 / (1 + abs(scored[-1] - 25)), 5

    return fit(
        model,
        np.arange(100),
        recipe(epochs=4, nesterov=True, lr_schedule="one-cycle", warmup=0.3, select="best", augment="crop-flip"),
        Context(digits, cpu, 4, path, progress),
        mask=mask,
        snapshots={1, 3},
        validate=validate,
        **more,
    )


def test_an_interruption_without_a_checkpoint_names_the_argument(digits: Records, cpu: Runtime) -> None:
    with pytest.raises(Interrupted, match="was interrupted in epoch") as caught:
        run(digits, cpu, network(dropout=0.2), None, None, progress=Stop(201))
    assert "checkpoint=FILE" in str(caught.value.hint)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("stops", [(50,), (132,), (200,), (300, 350), (133, 210, 330), (399,)])
def test_resumed_equals_uninterrupted(
    digits: Records, cpu: Runtime, tmp_path: Path, masked: bool, stops: tuple[int, ...]
) -> None:
    whole = network(dropout=0.2)
    mask = random_mask(whole) if masked else None
    expected = run(digits, cpu, whole, mask, None)
    path = tmp_path / "run.safetensors"
    for stop in stops:
        with pytest.raises(Interrupted, match="in epoch") as caught:
            run(digits, cpu, network(dropout=0.2), mask, path, progress=Stop(stop))
        finished = (stop - 1) // 100
        assert path.exists() == (finished > 0)
        said = f"resumes after epoch {finished}" if finished else "nothing of it was saved yet"
        assert said in str(caught.value.hint)
    resumed = network(dropout=0.2)
    result = run(digits, cpu, resumed, mask, path)
    assert state_hash(resumed) == state_hash(whole)
    assert result.history == expected.history
    assert result.best_epoch == expected.best_epoch
    assert result.snapshots.keys() == expected.snapshots.keys() == {1, 3}
    for epoch, state in expected.snapshots.items():
        assert hash_tensors(result.snapshots[epoch]) == hash_tensors(state)
    assert (result.trained_records, result.forward_records) == (400, 20)
    assert result.optimiser_steps == expected.optimiser_steps == 16
    assert not path.exists(), "a finished run left a checkpoint"


@pytest.mark.usefixtures("eager")
def test_resuming_does_not_start_from_the_beginning(digits: Records, cpu: Runtime, tmp_path: Path) -> None:
    """Negative control of the test above: the resumed run trains only the remaining epochs."""
    path, seen = tmp_path / "c", []
    with pytest.raises(Interrupted):
        run(digits, cpu, network(), None, path, progress=Stop(250))
    run(digits, cpu, network(), None, path, progress=lambda label, done, total, info: seen.append((done, total)))
    assert seen[0] == (232, 400)
    assert seen[-1] == (400, 400)


def test_an_interruption_without_a_path_says_that_nothing_is_kept(digits: Records, cpu: Runtime) -> None:
    with pytest.raises(Interrupted) as caught:
        run(digits, cpu, network(), None, None, progress=Stop(0), label="x")
    assert "nothing of it is kept: with checkpoint=FILE" in str(caught.value.hint)


@pytest.mark.usefixtures("eager")
def test_a_checkpoint_of_another_run_is_rejected(digits: Records, cpu: Runtime, tmp_path: Path) -> None:
    path = tmp_path / "c"

    def attempt(**changes: Any) -> None:
        given: dict[str, Any] = {
            "model": network(), "rows": np.arange(100), "recipe": recipe(), "label": "a", "run_options": {"gamma": 0.1},
        }  # fmt: skip
        context = {"records": digits, "runtime": cpu, "seed": 4, "checkpoint": path}
        for key, value in changes.items():
            (context if key in (*context, "progress") else given)[key] = value
        fit(given.pop("model"), given.pop("rows"), given.pop("recipe"), Context(**context), **given)

    with pytest.raises(Interrupted):
        attempt(progress=Stop(250))
    others: list[dict[str, Any]] = [
        {"seed": 5},
        {"recipe": recipe(learning_rate=0.06)},
        {"model": network(1)},
        {"rows": np.arange(99)},
        {"records": dataclasses.replace(digits, labels=digits.labels[::-1])},
        {"mask": random_mask(network())},
        {"label": "b"},
        {"steps": Steps(batch_norm="frozen")},
        {"stop": 2},
        {"snapshots": {1}},
        {"run_options": {"gamma": 0.2}},
        {"runtime": Runtime(device="cpu", precision="bf16")},
    ]
    for changes in others:
        with pytest.raises(FileError, match="belongs to another run") as caught:
            attempt(**changes)
        assert caught.value.where == str(path)
        assert path.exists()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FileError, match="not a complete safetensors file"):
        attempt()
    path.write_bytes(whole)
    attempt()
    assert not path.exists()


def test_short_runs_write_no_checkpoint(digits: Records, cpu: Runtime, tmp_path: Path) -> None:
    """The first one is written after 10 seconds."""
    with pytest.raises(Interrupted, match="epoch 4") as caught:
        run(digits, cpu, network(), None, tmp_path / "c", progress=Stop(400))
    assert "nothing of it was saved yet" in str(caught.value.hint)
    assert list(tmp_path.iterdir()) == []


def test_the_time_of_a_resumed_run_is_that_of_both_parts(
    digits: Records, cpu: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without what the interruption lost: the time after the last checkpoint."""
    clock = Clock()
    clock.now = 1e6  # perf_counter counts from some time in the past
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(loop, "time", clock)
    path, start = tmp_path / "c", clock.now
    with pytest.raises(Interrupted):
        run(digits, cpu, network(), None, path, progress=Stop(250))
    interrupted = clock.now
    result = run(digits, cpu, network(), None, path)
    second = clock.now - interrupted
    assert second < result.seconds < second + interrupted - start
