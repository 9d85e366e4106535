"""The loop against bare PyTorch, bit for bit; masked steps; resumption; BatchNorm modes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from expunge.core.errors import ConfigError, FileError, Interrupted, TrainingError
from expunge.core.hashing import hash_tensors
from expunge.core.mask import Mask, MaskProvenance
from expunge.core.seeds import derive, epoch_order, record_keys
from expunge.data.batches import Batches
from expunge.data.records import Records
from expunge.training import MaskKeeper, Recipe, Runtime, fit, loop

Seen = Callable[[nn.Module], Any]


def network(seed: int = 0, *, batch_norm: bool = True, dropout: float = 0.0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2, bias=False),
            nn.BatchNorm2d(4) if batch_norm else nn.Identity(),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(36, 10),
        )


def random_mask(model: nn.Module, share: float = 0.5) -> Mask:
    generator = torch.Generator().manual_seed(1)
    weights = {n: p for n, p in model.named_parameters() if p.dim() > 1}
    alive = {n: torch.rand(p.shape, generator=generator) > share for n, p in weights.items()}
    return Mask(alive, MaskProvenance("random"))


def state_hash(model: nn.Module) -> str:
    return hash_tensors(model.state_dict())


def recipe(**changes: Any) -> Recipe:
    base = Recipe(epochs=3, batch_size=32, learning_rate=0.05, momentum=0.9, weight_decay=5e-4)
    return dataclasses.replace(base, **changes)


@pytest.fixture(scope="module")
def rows(digits: Records) -> np.ndarray:
    return np.arange(100)  # the last batch of 32 holds 4


def bare_loop(
    model: nn.Module, records: Records, rows: np.ndarray, plan: Recipe, seed: int, rates: list[float] | None = None
) -> list[float]:
    """Training written down once more, with nothing of the package but the order of records."""
    features = torch.from_numpy(np.array(records.features)).float() / 255
    labels = torch.from_numpy(records.labels)
    keys = record_keys(records.record_ids[rows])
    optimiser = torch.optim.SGD(
        model.parameters(), plan.learning_rate, plan.momentum, 0.0, plan.weight_decay, plan.nesterov
    )
    losses = []
    model.train()
    for epoch in range(plan.epochs):
        order = torch.from_numpy(rows[epoch_order(keys, seed, epoch)])
        total = 0.0
        with torch.random.fork_rng():
            torch.manual_seed(derive(seed, "epoch", epoch))
            for step, index in enumerate(order.split(plan.batch_size)):
                if rates is not None:
                    optimiser.param_groups[0]["lr"] = rates[epoch * -(-len(rows) // plan.batch_size) + step]
                optimiser.zero_grad()
                loss = functional.cross_entropy(model(features[index]), labels[index])
                loss.backward()
                optimiser.step()
                total += loss.item() * len(index)
        losses.append(total / len(rows))
    return losses


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"momentum": 0.0, "weight_decay": 0.0},
        {"nesterov": True},
        {"weight_decay": 0.1, "batch_size": 100},
        {"schedule": "multistep", "milestones": (1 / 3, 2 / 3)},
        {"momentum": 0.0, "nesterov": True},
    ],
)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_equals_a_bare_loop_bit_for_bit(
    digits: Records, rows: np.ndarray, cpu: Runtime, changes: dict[str, Any], dropout: float
) -> None:
    plan = recipe(**changes)
    ours, theirs = network(dropout=dropout), network(dropout=dropout)
    batches = Batches(digits, rows, batch_size=plan.batch_size)
    rates = None
    if plan.schedule == "multistep":
        rates = [0.05] * 4 + [0.05 * 0.1] * 4 + [0.05 * 0.1**2] * 4
    result = fit(ours, batches, plan, runtime=cpu, seed=11)
    fair = dataclasses.replace(plan, nesterov=plan.nesterov and plan.momentum > 0)
    losses = bare_loop(theirs, digits, rows, fair, 11, rates)
    assert state_hash(ours) == state_hash(theirs)
    assert [h["loss"] for h in result.history] == pytest.approx(losses, rel=1e-6)
    assert (result.trained_records, result.forward_records) == (300, 0)
    assert state_hash(ours) != state_hash(network(dropout=dropout))
    assert all(p.grad is None for p in ours.parameters()), "a model does not carry its last batch's gradient around"


def test_seeds_decide(digits: Records, rows: np.ndarray, cpu: Runtime) -> None:
    hashes = []
    for seed in (1, 1, 2):
        model = network(dropout=0.2)
        torch.manual_seed(len(hashes))  # global state must not matter, and must be left alone
        before = torch.random.get_rng_state()
        fit(model, Batches(digits, rows, batch_size=32), recipe(epochs=1), runtime=cpu, seed=seed)
        assert torch.equal(torch.random.get_rng_state(), before)
        hashes.append(state_hash(model))
    assert hashes[0] == hashes[1] != hashes[2]


def test_starting_late_and_stopping_early(digits: Records, rows: np.ndarray, cpu: Runtime) -> None:
    """Without momentum, epochs 0..1 and then 1..3 are epochs 0..3."""
    plan = recipe(momentum=0.0, schedule="cosine")
    whole, parts = network(), network()
    batches = Batches(digits, rows, batch_size=32)
    result = fit(whole, batches, plan, runtime=cpu, seed=1, snapshots={1, 3})
    first = fit(parts, batches, plan, runtime=cpu, seed=1, stop=1)
    assert hash_tensors(result.snapshots[1]) == state_hash(parts)
    second = fit(parts, batches, plan, runtime=cpu, seed=1, start=1)
    assert state_hash(parts) == state_hash(whole) == hash_tensors(result.snapshots[3])
    assert first.history + second.history == result.history
    past = fit(parts, batches, recipe(schedule="multistep", milestones=(0.5,)), runtime=cpu, seed=1, start=3, stop=5)
    assert [h["learning_rate"] for h in past.history] == pytest.approx([0.005, 0.005])


def test_no_epochs_is_the_identity(digits: Records, rows: np.ndarray, cpu: Runtime) -> None:
    model = network()
    before = state_hash(model)
    result = fit(model, Batches(digits, rows, batch_size=32), recipe(epochs=0), runtime=cpu, seed=0)
    assert state_hash(model) == before
    assert (result.history, result.trained_records, result.best_epoch) == ((), 0, None)


def test_best_epoch_is_kept(digits: Records, rows: np.ndarray, cpu: Runtime) -> None:
    scores = iter([10.0, 50.0, 50.0, 20.0])
    model = network()
    result = fit(
        model,
        Batches(digits, rows, batch_size=32),
        recipe(epochs=4, select="best"),
        runtime=cpu,
        seed=1,
        snapshots={2},
        validate=lambda _: (next(scores), 7),
    )
    assert result.best_epoch == 2, "the first of equals"
    assert state_hash(model) == hash_tensors(result.snapshots[2])
    assert [h["validation_accuracy"] for h in result.history] == [10.0, 50.0, 50.0, 20.0]
    assert result.forward_records == 28


def test_last_selection_does_not_validate(digits: Records, rows: np.ndarray, cpu: Runtime) -> None:
    def never(_: nn.Module) -> tuple[float, int]:
        raise AssertionError

    fit(network(), Batches(digits, rows, batch_size=32), recipe(epochs=1), runtime=cpu, seed=1, validate=never)


def test_a_loss_that_is_not_finite_is_an_error(digits: Records, rows: np.ndarray, cpu: Runtime) -> None:
    with pytest.raises(TrainingError, match="loss of epoch 1") as caught:
        fit(network(), Batches(digits, rows, batch_size=32), recipe(learning_rate=1e30), runtime=cpu, seed=0, label="T")
    assert caught.value.where == "T"


def test_a_batch_of_one_record(digits: Records, cpu: Runtime) -> None:
    """Its variance is 0: the running statistics normalise it, and it does not move them."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.BatchNorm1d(3), nn.Linear(3, 10))
    fit(model, Batches(digits, np.arange(33), batch_size=32), recipe(epochs=2), runtime=cpu, seed=0)
    assert int(model[2].num_batches_tracked) == 2
    assert all(torch.isfinite(t).all() for t in model.state_dict().values())


# ---- masks


def dead_weights_are_zero(mask: Mask, model: nn.Module) -> None:
    assert mask.violations(model) == {}


@pytest.mark.parametrize("changes", [{}, {"nesterov": True}, {"weight_decay": 0.5}, {"momentum": 0.0}])
def test_masked_weights_are_zero_after_every_step(
    digits: Records, rows: np.ndarray, cpu: Runtime, changes: dict[str, Any]
) -> None:
    model, steps = network(), []
    mask = random_mask(model)

    def check(m: nn.Module, epoch: int, rate: float) -> None:
        steps.append(rate)
        dead_weights_are_zero(mask, m)

    with torch.no_grad():
        model[0].weight.fill_(float("inf"))
        model[0].weight.masked_fill_(mask.alive["0.weight"], 0.1)
    fit(
        model,
        Batches(digits, rows, batch_size=32),
        recipe(**changes),
        runtime=cpu,
        seed=0,
        mask=mask,
        after_step=check,
    )
    assert len(steps) == 12
    alive = model[5].weight[mask.alive["5.weight"]]
    assert (alive != 0).all()


OPTIMISERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, 0.1, weight_decay=0.1),
    "AdamW": lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.1),
    "NAdam": lambda p: torch.optim.NAdam(p, 0.1, weight_decay=0.1),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.1, momentum=0.9, centered=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, 0.1),
    "maximise": lambda p: torch.optim.SGD(p, 0.1, maximize=True),
}


@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_keeper_holds_for_any_optimiser(name: str, channels_last: bool) -> None:
    model = network(batch_norm=False)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    mask = random_mask(model)
    optimiser = OPTIMISERS[name](model.parameters())
    # moments that were learnt without the mask push on the masked weights: the worst case
    for _ in range(2):
        model(torch.rand(8, 1, 8, 8)).square().sum().backward()
        optimiser.step()
    keeper = MaskKeeper(model, mask)
    dead_weights_are_zero(mask, model)
    for _ in range(5):
        optimiser.zero_grad()
        (model(torch.rand(8, 1, 8, 8)).square().sum() * 1e3).backward()
        keeper.before_step()
        for key, alive in mask.alive.items():
            assert (dict(model.named_parameters())[key].grad[~alive] == 0).all()
        optimiser.step()
        keeper.after_step()
        dead_weights_are_zero(mask, model)


def test_without_the_keeper_the_check_fails() -> None:
    """The control: decoupled decay and old moments do move masked weights."""
    model = network(batch_norm=False)
    optimiser = OPTIMISERS["SGD"](model.parameters())
    mask = random_mask(model)
    model(torch.rand(8, 1, 8, 8)).sum().backward()
    mask.apply_(model)
    optimiser.step()
    with pytest.raises(AssertionError):
        dead_weights_are_zero(mask, model)


def test_keeper_copes_with_infinite_gradients() -> None:
    model = network(batch_norm=False)
    mask = random_mask(model)
    keeper = MaskKeeper(model, mask)
    optimiser = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    model[0].weight.grad[~mask.alive["0.weight"]] = float("nan")
    model[5].weight.grad[~mask.alive["5.weight"]] = float("-inf")
    keeper.before_step()
    optimiser.step()
    keeper.after_step()
    assert all(torch.isfinite(p).all() for p in model.parameters())
    dead_weights_are_zero(mask, model)


# ---- resumption


class Stop:
    """Raises KeyboardInterrupt once `at` records were seen."""

    def __init__(self, at: int) -> None:
        self.at = at

    def __call__(self, label: str, done: int, total: int, info: dict[str, Any]) -> None:
        if done >= self.at:
            raise KeyboardInterrupt


class Clock:
    """A clock that jumps a second at every look, so that progress is told at every step."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 1.0
        return self.now


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(loop, "time", Clock())


def run(digits: Records, cpu: Runtime, model: nn.Module, mask: Mask | None, path: Path | None, **more: Any) -> loop.Fit:
    scored: list[float] = []

    def validate(m: nn.Module) -> tuple[float, int]:
        scored.append(float(m[5].weight.detach().abs().sum()))
        return 100 / (1 + abs(scored[-1] - 25)), 5

    return fit(
        model,
        Batches(digits, np.arange(100), batch_size=32, augment="crop-flip"),
        recipe(epochs=4, nesterov=True, schedule="one-cycle", warmup=0.3, select="best"),
        runtime=cpu,
        seed=4,
        mask=mask,
        snapshots={1, 3},
        validate=validate,
        checkpoint_path=path,
        **more,
    )


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
        assert f"resumes after epoch {finished}" in str(caught.value.hint)
    resumed = network(dropout=0.2)
    result = run(digits, cpu, resumed, mask, path)
    assert state_hash(resumed) == state_hash(whole)
    assert result.history == expected.history
    assert result.best_epoch == expected.best_epoch
    assert result.snapshots.keys() == expected.snapshots.keys() == {1, 3}
    for epoch, state in expected.snapshots.items():
        assert hash_tensors(result.snapshots[epoch]) == hash_tensors(state)
    assert (result.trained_records, result.forward_records) == (400, 20)
    assert not path.exists(), "a finished run leaves no checkpoint"


@pytest.mark.usefixtures("eager")
def test_resuming_does_not_start_anew(digits: Records, cpu: Runtime, tmp_path: Path) -> None:
    """The control for the test above: the resumed run trains only what was left."""
    path, seen = tmp_path / "c", []
    with pytest.raises(Interrupted):
        run(digits, cpu, network(), None, path, progress=Stop(250))
    run(digits, cpu, network(), None, path, progress=lambda label, done, total, info: seen.append((done, total)))
    assert seen[0] == (232, 400)
    assert seen[-1] == (400, 400)


def test_an_interruption_without_a_path_promises_nothing(digits: Records, cpu: Runtime) -> None:
    with pytest.raises(Interrupted) as caught:
        run(digits, cpu, network(), None, None, progress=Stop(0), label="x")
    assert caught.value.hint is None


@pytest.mark.usefixtures("eager")
def test_a_checkpoint_of_another_run_is_refused(digits: Records, cpu: Runtime, tmp_path: Path) -> None:
    path = tmp_path / "c"
    batches = Batches(digits, np.arange(100), batch_size=32)

    def attempt(**changes: Any) -> None:
        given: dict[str, Any] = {
            "model": network(), "batches": batches, "recipe": recipe(), "runtime": cpu, "seed": 4, "label": "a",
            "checkpoint_path": path, "belongs_to": {"gamma": 0.1},
        }  # fmt: skip
        given.update(changes)
        fit(given.pop("model"), given.pop("batches"), given.pop("recipe"), **given)

    with pytest.raises(Interrupted):
        attempt(progress=Stop(250))
    others: list[dict[str, Any]] = [
        {"seed": 5},
        {"recipe": recipe(learning_rate=0.06)},
        {"model": network(1)},
        {"batches": Batches(digits, np.arange(99), batch_size=32)},
        {"batches": Batches(dataclasses.replace(digits, labels=digits.labels[::-1]), np.arange(100), batch_size=32)},
        {"mask": random_mask(network())},
        {"label": "b"},
        {"batch_norm": "frozen"},
        {"stop": 2},
        {"snapshots": {1}},
        {"belongs_to": {"gamma": 0.2}},
        {"runtime": Runtime(device="cpu", precision="bf16")},
    ]
    for changes in others:
        with pytest.raises(FileError, match="belongs to another run") as caught:
            attempt(**changes)
        assert caught.value.where == str(path)
        assert path.exists()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FileError, match="not a whole safetensors file"):
        attempt()
    path.write_bytes(whole)
    attempt()
    assert not path.exists()


def test_checkpoints_wait_for_their_time(digits: Records, cpu: Runtime, tmp_path: Path) -> None:
    """A fast run writes none: the work that is lost is less than the work of saving."""
    with pytest.raises(Interrupted, match="epoch 4") as caught:
        run(digits, cpu, network(), None, tmp_path / "c", progress=Stop(400))
    assert "after epoch 0" in str(caught.value.hint)
    assert list(tmp_path.iterdir()) == []


# ---- BatchNorm and precision


def test_frozen_buffers_are_bit_equal(digits: Records, rows: np.ndarray, cpu: Runtime) -> None:
    model = network()
    fit(model, Batches(digits, rows, batch_size=32), recipe(epochs=1), runtime=cpu, seed=0)
    before = {k: v.clone() for k, v in model.named_buffers()}
    weights = model[1].weight.detach().clone()
    fit(model, Batches(digits, rows, batch_size=32), recipe(epochs=2), runtime=cpu, seed=1, batch_norm="frozen")
    assert hash_tensors(dict(model.named_buffers())) == hash_tensors(before)
    assert not torch.equal(model[1].weight, weights), "scale and shift do train"


def test_frozen_batches_normalise_with_the_running_statistics(digits: Records, cpu: Runtime) -> None:
    """One frozen step equals a bare step of the model in evaluation mode."""
    rows = np.arange(32)
    ours, theirs = network(), network()
    fit(ours, Batches(digits, rows, batch_size=32), recipe(epochs=1), runtime=cpu, seed=0, batch_norm="frozen")
    theirs.eval()
    optimiser = torch.optim.SGD(theirs.parameters(), 0.05, 0.9, 0, 5e-4)
    order = rows[epoch_order(record_keys(digits.record_ids[rows]), 0, 0)]
    x = torch.from_numpy(np.array(digits.features))[order].float() / 255
    functional.cross_entropy(theirs(x), torch.from_numpy(digits.labels[order])).backward()
    optimiser.step()
    assert state_hash(ours) == state_hash(theirs)


@pytest.mark.parametrize(("batch_norm", "moves"), [("train", True), ("frozen", False)])
def test_a_rate_of_zero(digits: Records, rows: np.ndarray, cpu: Runtime, batch_norm: str, moves: bool) -> None:
    """The identity on the weights; on the buffers only if they are frozen."""
    model = network()
    weights = hash_tensors(dict(model.named_parameters()))
    buffers = hash_tensors(dict(model.named_buffers()))
    fit(
        model,
        Batches(digits, rows, batch_size=32),
        recipe(learning_rate=0.0),
        runtime=cpu,
        seed=0,
        batch_norm=batch_norm,
    )
    assert hash_tensors(dict(model.named_parameters())) == weights
    assert (hash_tensors(dict(model.named_buffers())) != buffers) == moves


def test_unknown_mode(digits: Records, rows: np.ndarray, cpu: Runtime) -> None:
    with pytest.raises(ConfigError, match="did you mean 'frozen'"):
        fit(network(), Batches(digits, rows, batch_size=32), recipe(), runtime=cpu, seed=0, batch_norm="frozn")


def test_bf16_trains_and_stays_finite(digits: Records, rows: np.ndarray, cpu: Runtime) -> None:
    model, full = network(), network()
    half = Runtime(device="cpu", precision="bf16")
    batches = Batches(digits, rows, batch_size=32)
    result = fit(model, batches, recipe(epochs=5), runtime=half, seed=0)
    fit(full, batches, recipe(epochs=5), runtime=cpu, seed=0)
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in model.parameters())
    assert state_hash(model) != state_hash(full), "bf16 does something"
    assert (model[5].weight - full[5].weight).abs().max() < 0.1, "and nothing else"


def test_channels_last_is_the_same_training(digits: Records, rows: np.ndarray, cpu: Runtime) -> None:
    last = Runtime(device="cpu", channels_last=True)
    a, b = network(), network()
    fit(a, Batches(digits, rows, batch_size=32), recipe(epochs=1), runtime=cpu, seed=0)
    b = last.place(b)
    fit(b, Batches(digits, rows, batch_size=32, channels_last=True), recipe(epochs=1), runtime=last, seed=0)
    b = last.release(b)
    for (name, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert y.is_contiguous()
        torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-4, msg=name)
