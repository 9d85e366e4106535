"""The training loop against plain PyTorch, bit for bit; BatchNorm modes; precision."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from small_networks import network, recipe, state_hash
from torch import nn
from torch.nn import functional

from expunge.core.errors import ConfigError, TrainingError
from expunge.core.hashing import hash_tensors
from expunge.core.seeds import derive, epoch_order, record_keys
from expunge.data.records import Records
from expunge.training import Context, Recipe, Runtime, Steps, fit


@pytest.fixture(scope="module")
def rows(digits: Records) -> np.ndarray:
    return np.arange(100)  # the last batch of 32 holds 4


def plain_loop(
    model: nn.Module, records: Records, rows: np.ndarray, plan: Recipe, seed: int, rates: list[float] | None = None
) -> list[float]:
    """Training in plain PyTorch; only the order of records comes from the package."""
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
        {"lr_schedule": "multistep", "milestones": (1 / 3, 2 / 3)},
        {"momentum": 0.0, "nesterov": True},
    ],
)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_equals_a_plain_loop_bit_for_bit(
    digits: Records, rows: np.ndarray, cpu: Runtime, changes: dict[str, Any], dropout: float
) -> None:
    plan = recipe(**changes)
    model, expected = network(dropout=dropout), network(dropout=dropout)
    rates = None
    if plan.lr_schedule == "multistep":
        rates = [0.05] * 4 + [0.05 * 0.1] * 4 + [0.05 * 0.1**2] * 4
    result = fit(model, rows, plan, Context(digits, cpu, 11))
    fair = dataclasses.replace(plan, nesterov=plan.nesterov and plan.momentum > 0)
    losses = plain_loop(expected, digits, rows, fair, 11, rates)
    assert state_hash(model) == state_hash(expected)
    assert [h["loss"] for h in result.history] == pytest.approx(losses, rel=1e-6)
    assert (result.trained_records, result.forward_records) == (300, 0)
    assert state_hash(model) != state_hash(network(dropout=dropout))
    assert all(p.grad is None for p in model.parameters()), "the model carries a gradient of the last batch"


def test_only_the_seed_decides(digits: Records, rows: np.ndarray, cpu: Runtime) -> None:
    hashes = []
    for seed in (1, 1, 2):
        model = network(dropout=0.2)
        torch.manual_seed(len(hashes))  # global state must not matter, and must not change
        before = torch.random.get_rng_state()
        fit(model, rows, recipe(epochs=1), Context(digits, cpu, seed))
        assert torch.equal(torch.random.get_rng_state(), before)
        hashes.append(state_hash(model))
    assert hashes[0] == hashes[1] != hashes[2]


def test_starting_late_and_stopping_early(digits: Records, rows: np.ndarray, cpu: Runtime) -> None:
    """Without momentum, epochs 0..1 and then 1..3 are epochs 0..3."""
    plan = recipe(momentum=0.0, lr_schedule="cosine")
    whole, parts = network(), network()
    result = fit(whole, rows, plan, Context(digits, cpu, 1), snapshots={1, 3})
    first = fit(parts, rows, plan, Context(digits, cpu, 1), stop=1)
    assert hash_tensors(result.snapshots[1]) == state_hash(parts)
    second = fit(parts, rows, plan, Context(digits, cpu, 1), start=1)
    assert state_hash(parts) == state_hash(whole) == hash_tensors(result.snapshots[3])
    assert first.history + second.history == result.history
    steps = recipe(lr_schedule="multistep", milestones=(0.5,))
    past = fit(parts, rows, steps, Context(digits, cpu, 1), start=3, stop=5)
    assert [h["learning_rate"] for h in past.history] == pytest.approx([0.005, 0.005])


def test_no_epochs_is_the_identity(digits: Records, rows: np.ndarray, cpu: Runtime) -> None:
    model = network()
    before = state_hash(model)
    result = fit(model, rows, recipe(epochs=0), Context(digits, cpu, 0))
    assert state_hash(model) == before
    assert (result.history, result.trained_records, result.best_epoch) == ((), 0, None)


def test_the_best_epoch_is_selected(digits: Records, rows: np.ndarray, cpu: Runtime) -> None:
    scores = iter([10.0, 50.0, 50.0, 20.0])
    model = network()
    result = fit(
        model,
        rows,
        recipe(epochs=4, select="best"),
        Context(digits, cpu, 1),
        snapshots={2},
        validate=lambda _: (next(scores), 7),
    )
    assert result.best_epoch == 2, "the first of equal epochs"
    assert state_hash(model) == hash_tensors(result.snapshots[2])
    assert [h["validation_accuracy"] for h in result.history] == [10.0, 50.0, 50.0, 20.0]
    assert result.forward_records == 28


def test_last_selection_does_not_validate(digits: Records, rows: np.ndarray, cpu: Runtime) -> None:
    def never(_: nn.Module) -> tuple[float, int]:
        raise AssertionError

    fit(network(), rows, recipe(epochs=1), Context(digits, cpu, 1), validate=never)


def test_a_loss_that_is_not_finite_is_an_error(digits: Records, rows: np.ndarray, cpu: Runtime) -> None:
    with pytest.raises(TrainingError, match="loss of epoch 1") as caught:
        fit(network(), rows, recipe(learning_rate=1e30), Context(digits, cpu, 0), label="T")
    assert caught.value.where == "T"


def test_a_batch_of_one_record(digits: Records, cpu: Runtime) -> None:
    """It has no variance: the running statistics normalise it, and do not change."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.BatchNorm1d(3), nn.Linear(3, 10))
    fit(model, np.arange(33), recipe(epochs=2), Context(digits, cpu, 0))
    assert int(model[2].num_batches_tracked) == 2
    assert all(torch.isfinite(t).all() for t in model.state_dict().values())


# ---- BatchNorm and precision


def test_frozen_buffers_are_bit_equal(digits: Records, rows: np.ndarray, cpu: Runtime) -> None:
    model = network()
    fit(model, rows, recipe(epochs=1), Context(digits, cpu, 0))
    before = {k: v.clone() for k, v in model.named_buffers()}
    weights = model[1].weight.detach().clone()
    fit(model, rows, recipe(epochs=2), Context(digits, cpu, 1), steps=Steps(batch_norm="frozen"))
    assert hash_tensors(dict(model.named_buffers())) == hash_tensors(before)
    assert not torch.equal(model[1].weight, weights), "scale and shift are trained"


def test_frozen_batches_normalise_with_the_running_statistics(digits: Records, cpu: Runtime) -> None:
    """One frozen step equals a plain step of the model in evaluation mode."""
    rows = np.arange(32)
    model, expected = network(), network()
    fit(model, rows, recipe(epochs=1), Context(digits, cpu, 0), steps=Steps(batch_norm="frozen"))
    expected.eval()
    optimiser = torch.optim.SGD(expected.parameters(), 0.05, 0.9, 0, 5e-4)
    order = rows[epoch_order(record_keys(digits.record_ids[rows]), 0, 0)]
    x = torch.from_numpy(np.array(digits.features))[order].float() / 255
    functional.cross_entropy(expected(x), torch.from_numpy(digits.labels[order])).backward()
    optimiser.step()
    assert state_hash(model) == state_hash(expected)


@pytest.mark.parametrize(("batch_norm", "changes"), [("train", True), ("frozen", False)])
def test_a_rate_of_zero(digits: Records, rows: np.ndarray, cpu: Runtime, batch_norm: str, changes: bool) -> None:
    """A rate of 0 does not change the weights; the buffers stay only if they are frozen."""
    model = network()
    weights = hash_tensors(dict(model.named_parameters()))
    buffers = hash_tensors(dict(model.named_buffers()))
    steps = Steps(batch_norm=batch_norm)
    fit(model, rows, recipe(learning_rate=0.0), Context(digits, cpu), steps=steps)
    assert hash_tensors(dict(model.named_parameters())) == weights
    assert (hash_tensors(dict(model.named_buffers())) != buffers) == changes


def test_unknown_mode(digits: Records, rows: np.ndarray, cpu: Runtime) -> None:
    with pytest.raises(ConfigError, match="did you mean 'frozen'"):
        fit(network(), rows, recipe(), Context(digits, cpu, 0), steps=Steps(batch_norm="frozn"))


def test_bf16_trains_and_stays_finite(digits: Records, rows: np.ndarray, cpu: Runtime) -> None:
    model, full = network(), network()
    half = Runtime(device="cpu", precision="bf16")
    result = fit(model, rows, recipe(epochs=5), Context(digits, half))
    fit(full, rows, recipe(epochs=5), Context(digits, cpu))
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in model.parameters())
    assert state_hash(model) != state_hash(full), "bf16 has no effect"
    assert (model[5].weight - full[5].weight).abs().max() < 0.1, "bf16 changes the weights by more than rounding"


def test_channels_last_is_the_same_training(digits: Records, rows: np.ndarray, cpu: Runtime) -> None:
    last = Runtime(device="cpu", channels_last=True)
    a, b = network(), network()
    fit(a, rows, recipe(epochs=1), Context(digits, cpu, 0))
    b = last.place(b)
    fit(b, rows, recipe(epochs=1), Context(digits, last))
    b = last.release(b)
    for (name, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert y.is_contiguous()
        torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-4, msg=name)
