"""Training with a recipe against plain loops of PyTorch: its optimisers and schedulers, the same order, bit for bit."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

import expunge
from expunge.core.mask import Mask, MaskProvenance
from expunge.core.seeds import epoch_order
from expunge.data.records import Records
from expunge.training import Context, Recipe, Runtime, fit
from expunge.training.loop import Interrupted, Steps

ROWS = np.arange(90)
SEED = 5
EPOCHS, BATCH = 3, 32
STEPS = 3  # 90 records


@pytest.fixture(scope="module")
def records() -> Records:
    return expunge.load_records("digits")


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.LayerNorm(12), nn.GELU(), nn.Linear(12, 10))


def make_mask(model: nn.Module) -> Mask:
    generator = torch.Generator().manual_seed(2)
    weights = ("1.weight", "4.weight")
    kept = {name: torch.rand(model.get_parameter(name).shape, generator=generator) > 0.5 for name in weights}
    return Mask(kept, MaskProvenance("example"))


def linear_after_warm_up(optimiser: torch.optim.Optimizer) -> Any:
    total = EPOCHS * STEPS
    return lr_scheduler.LambdaLR(optimiser, lambda t: t / 2 if t < 2 else max(0.0, (total - t) / (total - 2)))


#: Recipe fields, optimiser, scheduler, and whether the scheduler is stepped once an epoch.
CASES: dict[str, tuple[dict[str, Any], Any, Any, bool]] = {
    "sgd": (
        {"momentum": 0.9, "weight_decay": 0.01, "nesterov": True, "learning_rate": 0.1},
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
        None, False,
    ),
    "sgd, multistep once an epoch": (
        {"learning_rate": 0.1, "lr_schedule": "multistep", "milestones": (1 / 3, 2 / 3), "lr_update": "epoch"},
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=5e-4),
        lambda o: lr_scheduler.MultiStepLR(o, [1, 2], 0.1), True,
    ),
    "adam, cosine once a step": (
        {"optimiser": "adam", "learning_rate": 0.01, "weight_decay": 0.01, "lr_schedule": "cosine", "lr_update": "step",
         "betas": (0.8, 0.95), "eps": 1e-6},
        lambda p: torch.optim.Adam(p, 0.01, (0.8, 0.95), 1e-6, 0.01),
        lambda o: lr_scheduler.CosineAnnealingLR(o, EPOCHS * STEPS), False,
    ),
    "adamw, linear after a warm-up": (
        {"optimiser": "adamw", "learning_rate": 0.02, "weight_decay": 0.1, "lr_schedule": "linear", "lr_update": "step",
         "warmup_steps": 2},
        lambda p: torch.optim.AdamW(p, 0.02, weight_decay=0.1), linear_after_warm_up, False,
    ),
    "adamw, one-cycle": (
        {"optimiser": "adamw", "learning_rate": 0.02, "weight_decay": 0.1, "lr_schedule": "one-cycle",
         "lr_update": "step", "warmup": 0.4},
        lambda p: torch.optim.AdamW(p, 0.02, weight_decay=0.1),
        lambda o: lr_scheduler.OneCycleLR(
            o, 0.02, total_steps=EPOCHS * STEPS, pct_start=0.4, div_factor=25, final_div_factor=400,
            cycle_momentum=False,
        ), False,
    ),
}  # fmt: skip


def plain_loop(
    model: nn.Module, records: Records, optimiser: torch.optim.Optimizer, scheduler: Any = None, *,
    each_epoch: bool = False, clip: float | None = None, smoothing: float = 0.0, mask: Mask | None = None,
) -> nn.Module:  # fmt: skip
    """The loop that a user writes, in the order of records of `fit`."""
    features = torch.from_numpy(np.asarray(records.features)).float()
    labels = torch.from_numpy(records.labels)
    loss_of = nn.CrossEntropyLoss(label_smoothing=smoothing)
    pruned = {} if mask is None else {model.get_parameter(name): ~kept for name, kept in mask.kept.items()}
    with torch.no_grad():
        for weight, zeros in pruned.items():
            weight[zeros] = 0.0
    model.train()
    for epoch in range(EPOCHS):
        order = ROWS[epoch_order(records.keys[ROWS], SEED, epoch)]
        for batch in torch.from_numpy(order).split(BATCH):
            loss = loss_of(model(features[batch]), labels[batch])
            optimiser.zero_grad()
            loss.backward()
            for weight, zeros in pruned.items():
                assert weight.grad is not None
                weight.grad[zeros] = 0.0
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimiser.step()
            with torch.no_grad():
                for weight, zeros in pruned.items():
                    weight[zeros] = 0.0
            if scheduler is not None and not each_epoch:
                scheduler.step()
        if scheduler is not None and each_epoch:
            scheduler.step()
    return model


def train(records: Records, recipe: Recipe, mask: Mask | None = None, **more: Any) -> nn.Module:
    model = network()
    fit(model, ROWS, recipe, Context(records, Runtime("cpu"), SEED), mask=mask, **more)
    return model


def assert_equal(model: nn.Module, other: nn.Module) -> None:
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


@pytest.fixture(scope="module")
def plain(records: Records) -> Records:
    """Features that `to_input` leaves as they are."""
    return dataclasses.replace(records, features=np.asarray(records.features, dtype=np.float32))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_training_equals_a_plain_loop(plain: Records, case: str, masked: bool) -> None:
    fields, make, schedule, each_epoch = CASES[case]
    recipe = Recipe(epochs=EPOCHS, batch_size=BATCH, clip_norm=0.5, label_smoothing=0.1, **fields)
    model = network()
    mask = make_mask(model) if masked else None
    optimiser = make(model.parameters())
    scheduler = None if schedule is None else schedule(optimiser)
    plain_loop(model, plain, optimiser, scheduler, each_epoch=each_epoch, clip=0.5, smoothing=0.1, mask=mask)
    trained = train(plain, recipe, mask)
    assert_equal(model, trained)
    assert not torch.equal(trained[1].weight, network()[1].weight)  # type: ignore[index]
    if mask is not None:
        for name, kept in mask.kept.items():
            pruned = trained.get_parameter(name)[~kept]
            assert torch.equal(pruned, torch.zeros_like(pruned))
            assert not torch.signbit(pruned).any()


@pytest.mark.parametrize("field", ["clip_norm", "label_smoothing", "warmup_steps", "betas", "eps", "no_decay"])
def test_every_field_changes_the_weights(plain: Records, field: str) -> None:
    """So the equalities above would notice a field that is ignored."""
    values = {
        "clip_norm": 0.5, "label_smoothing": 0.1, "warmup_steps": 2, "betas": (0.5, 0.5), "eps": 0.1,
        "no_decay": "bias-and-norm",
    }  # fmt: skip
    base = Recipe(epochs=1, batch_size=BATCH, optimiser="adamw", learning_rate=0.02, weight_decay=0.1)
    changed = dataclasses.replace(base, **{field: values[field]})
    assert not torch.equal(train(plain, base)[1].weight, train(plain, changed)[1].weight)  # type: ignore[index]


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_groups_without_decay_equal_a_plain_loop(plain: Records, optimiser: str) -> None:
    model = network()
    decayed = [model.get_parameter(name) for name in ("1.weight", "4.weight")]
    others = [p for p in model.parameters() if all(p is not one for one in decayed)]
    groups = [{"params": decayed, "weight_decay": 0.3}, {"params": others, "weight_decay": 0.0}]
    made = torch.optim.SGD(groups, 0.05, momentum=0.9) if optimiser == "sgd" else torch.optim.AdamW(groups, 0.05)
    plain_loop(model, plain, made)
    rules: list[Any] = ["bias-and-norm", "transformers", "one-dimensional", ("2.*", "*.bias")]
    for rule in rules:
        recipe = Recipe(
            epochs=EPOCHS, batch_size=BATCH, optimiser=optimiser, learning_rate=0.05, weight_decay=0.3, no_decay=rule
        )
        assert_equal(model, train(plain, recipe))


@pytest.mark.parametrize("optimiser", ["adam", "adamw"])
def test_resuming_equals_an_uninterrupted_run(
    plain: Records, optimiser: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("expunge.training.loop.CHECKPOINT_SECONDS", 0.0)
    recipe = Recipe(
        epochs=EPOCHS, batch_size=BATCH, optimiser=optimiser, learning_rate=0.02, weight_decay=0.1, clip_norm=0.5,
        lr_schedule="linear", lr_update="step", warmup_steps=2, no_decay="bias-and-norm",
    )  # fmt: skip
    mask = make_mask(network())
    whole = train(plain, recipe, mask)

    def interrupt(model: nn.Module, epoch: int, rate: float) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    context = Context(plain, Runtime("cpu"), SEED, tmp_path / "run.safetensors")
    with pytest.raises(Interrupted):
        fit(network(), ROWS, recipe, context, mask=mask, steps=Steps(after_step=interrupt))
    resumed = network()
    found = fit(resumed, ROWS, recipe, context, mask=mask)
    assert_equal(whole, resumed)
    assert len(found.history) == EPOCHS


def test_weights_that_are_pruned_during_training_keep_no_moments(plain: Records) -> None:
    recipe = Recipe(epochs=EPOCHS, batch_size=BATCH, optimiser="adamw", learning_rate=0.02, weight_decay=0.1)
    model, seen = network(), []
    mask = make_mask(model)
    from expunge.training.epochs import optimisers

    made: list[torch.optim.Optimizer] = []
    original = optimisers.make_optimiser

    def remember(*args: Any) -> torch.optim.Optimizer:
        made.append(original(*args))
        return made[-1]

    def look(model: nn.Module, epoch: int, rate: float) -> None:
        state = made[0].state[model.get_parameter("1.weight")]
        seen.append((epoch, bool(state["exp_avg"][~mask.kept["1.weight"]].any())))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimisers, "make_optimiser", remember)
        steps = Steps(before_epoch=lambda _, epoch: mask if epoch == 1 else None, after_step=look)
        fit(model, ROWS, recipe, Context(plain, Runtime("cpu"), SEED), steps=steps)
    assert all(has_moments == (epoch == 0) for epoch, has_moments in seen)
