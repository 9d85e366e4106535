"""Learning rates against PyTorch's own schedulers; recipes that are wrong say so."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from expunge.core.errors import ConfigError
from expunge.training import RECIPES, Recipe, recipe


def scheduled(make: Any, steps: int, rate: float = 0.1) -> list[float]:
    """The rates that a PyTorch scheduler gives at each step."""
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], rate)
    scheduler = make(optimiser)
    rates = []
    for _ in range(steps):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        scheduler.step()
    return rates


def test_multistep_is_torchs() -> None:
    ours = RECIPES["paper-a"]
    theirs = scheduled(lambda o: lr_scheduler.MultiStepLR(o, [91, 136], 0.1), 182)
    assert [ours.rate(e) for e in range(182)] == pytest.approx(theirs, rel=1e-12)
    assert [ours.rate(e + 0.999) for e in range(182)] == pytest.approx(theirs, rel=1e-12), "constant inside an epoch"


@pytest.mark.parametrize("epochs", [1, 7, 20])
def test_cosine_is_torchs(epochs: int) -> None:
    steps = 5
    ours = Recipe(epochs=epochs, schedule="cosine", learning_rate=0.3)
    theirs = scheduled(lambda o: lr_scheduler.CosineAnnealingLR(o, epochs * steps), epochs * steps, 0.3)
    rates = [ours.rate(e + s / steps) for e in range(epochs) for s in range(steps)]
    assert rates == pytest.approx(theirs, rel=1e-9, abs=1e-12)
    assert ours.rate(epochs) == pytest.approx(0, abs=1e-15)


def test_one_cycle_has_torchs_shape() -> None:
    """The same end points and the same cosine arcs; PyTorch counts steps, a recipe shares of the epochs."""
    total, warm = 101, 0.3
    ours = Recipe(epochs=1, schedule="one-cycle", learning_rate=0.5, warmup=warm)
    theirs = scheduled(
        lambda o: lr_scheduler.OneCycleLR(
            o, 0.5, total_steps=total, pct_start=warm, div_factor=25, final_div_factor=400, cycle_momentum=False
        ),
        total,
    )
    top = warm * total - 1
    for step, rate in enumerate(theirs):
        up = step <= top
        share = warm * step / top if up else warm + (1 - warm) * (step - top) / (total - 1 - top)
        assert ours.rate(share) == pytest.approx(rate, rel=1e-9), step
    assert ours.rate(0) == pytest.approx(0.5 / 25)
    assert ours.rate(warm) == pytest.approx(0.5)
    assert ours.rate(1) == pytest.approx(0.5 / 1e4)


def test_linear_warm_up() -> None:
    ours = Recipe(epochs=10, schedule="cosine", warmup=0.2, learning_rate=1.0)
    assert [ours.rate(p) for p in (0, 0.5, 1, 2)] == pytest.approx([0, 0.25, 0.5, 1.0])
    assert ours.rate(6) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.5)))
    flat = Recipe(epochs=10, warmup=0.2, learning_rate=1.0)
    assert [flat.rate(p) for p in (1, 2, 9)] == pytest.approx([0.5, 1, 1])


@pytest.mark.parametrize("schedule", ["constant", "multistep", "cosine", "one-cycle"])
def test_rates_are_defined_everywhere(schedule: str) -> None:
    for epochs in (0, 1, 3):
        plan = Recipe(epochs=epochs, schedule=schedule, milestones=(0.5,), warmup=0.25)
        for position in (0, 0.1, 1, 2.9, 3, 7):
            assert 0 <= plan.rate(position) <= plan.learning_rate


@pytest.mark.parametrize(("epochs", "expected"), [(182, 8), (20, 1), (91, 4), (1, 1), (0, 0), (40, 2)])
def test_rewind_epoch(epochs: int, expected: int) -> None:
    assert Recipe(epochs=epochs).rewind_epoch == expected


def test_paper_a() -> None:
    plan = RECIPES["paper-a"]
    assert (plan.epochs, plan.batch_size, plan.learning_rate, plan.momentum, plan.weight_decay, plan.select) == (
        182, 256, 0.1, 0.9, 5e-4, "best",
    )  # fmt: skip
    assert plan.rewind_epoch == 8


def test_round_trip_and_overrides() -> None:
    for plan in (*RECIPES.values(), Recipe(schedule="multistep", milestones=(0.5,))):
        assert recipe(json.loads(json.dumps(plan.to_json()))) == plan
    assert recipe("paper-a", epochs=3).epochs == 3
    assert recipe({"epochs": 2}, epochs=3) == Recipe(epochs=3)
    assert recipe(RECIPES["one-cycle"]) is not None


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("paper-b", {}, "did you mean 'paper-a'"),
        ("one-cycle", {"epoch": 3}, "did you mean 'epochs'"),
        ("one-cycle", {"schedule": "cosin"}, "did you mean 'cosine'"),
        ("one-cycle", {"select": "first"}, "`best` or `last`"),
        ("one-cycle", {"epochs": -1}, "epochs = -1 is out of range"),
        ("one-cycle", {"epochs": 2.5}, "epochs is int"),
        ("one-cycle", {"epochs": "3"}, "epochs is int"),
        ("one-cycle", {"epochs": True}, "epochs is int"),
        ("one-cycle", {"batch_size": 0}, "batch_size = 0"),
        ("one-cycle", {"learning_rate": float("nan")}, "learning_rate is a finite number"),
        ("one-cycle", {"learning_rate": "0.1"}, "learning_rate is a finite number"),
        ("one-cycle", {"learning_rate": -0.1}, "learning_rate = -0.1"),
        ("one-cycle", {"momentum": 1.0}, "momentum = 1.0"),
        ("one-cycle", {"weight_decay": -1e-4}, "weight_decay"),
        ("one-cycle", {"warmup": 1.5}, "warmup = 1.5"),
        ("one-cycle", {"milestones": (91,)}, "milestones"),
        ("one-cycle", {"milestones": 3}, "milestones"),
        ("one-cycle", {"milestones": ("a",)}, "milestones"),
    ],
)
def test_wrong_recipes_are_named(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        recipe(name, **changes)
    assert message in str(caught.value)
