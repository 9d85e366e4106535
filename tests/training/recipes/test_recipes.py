"""Learning rates against PyTorch's schedulers; errors of invalid recipes."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from expunge.core.errors import ConfigError
from expunge.training import RECIPES, Recipe, get_recipe


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


def test_multistep_equals_torch() -> None:
    recipe = RECIPES["jia2023"]
    expected = scheduled(lambda o: lr_scheduler.MultiStepLR(o, [91, 136], 0.1), 182)
    assert [recipe.rate(e) for e in range(182)] == pytest.approx(expected, rel=1e-12)
    assert [recipe.rate(e + 0.999) for e in range(182)] == pytest.approx(expected, rel=1e-12), (
        "constant inside an epoch"
    )


@pytest.mark.parametrize("epochs", [1, 7, 20])
def test_cosine_equals_torch(epochs: int) -> None:
    steps = 5
    recipe = Recipe(epochs=epochs, lr_schedule="cosine", learning_rate=0.3)
    expected = scheduled(lambda o: lr_scheduler.CosineAnnealingLR(o, epochs * steps), epochs * steps, 0.3)
    rates = [recipe.rate(e + s / steps) for e in range(epochs) for s in range(steps)]
    assert rates == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert recipe.rate(epochs) == pytest.approx(0, abs=1e-15)


def test_one_cycle_has_the_shape_of_torch() -> None:
    """The same end points and cosine arcs; PyTorch counts steps, a recipe counts fractions of the epochs."""
    total, warm = 101, 0.3
    recipe = Recipe(epochs=1, lr_schedule="one-cycle", learning_rate=0.5, warmup=warm)
    expected = scheduled(
        lambda o: lr_scheduler.OneCycleLR(
            o, 0.5, total_steps=total, pct_start=warm, div_factor=25, final_div_factor=400, cycle_momentum=False
        ),
        total,
    )
    top = warm * total - 1
    for step, rate in enumerate(expected):
        rising = step <= top
        fraction = warm * step / top if rising else warm + (1 - warm) * (step - top) / (total - 1 - top)
        assert recipe.rate(fraction) == pytest.approx(rate, rel=1e-9), step
    assert recipe.rate(0) == pytest.approx(0.5 / 25)
    assert recipe.rate(warm) == pytest.approx(0.5)
    assert recipe.rate(1) == pytest.approx(0.5 / 1e4)


def test_linear_warm_up() -> None:
    recipe = Recipe(epochs=10, lr_schedule="cosine", warmup=0.2, learning_rate=1.0)
    assert [recipe.rate(p) for p in (0, 0.5, 1, 2)] == pytest.approx([0, 0.25, 0.5, 1.0])
    assert recipe.rate(6) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.5)))
    flat = Recipe(epochs=10, warmup=0.2, learning_rate=1.0)
    assert [flat.rate(p) for p in (1, 2, 9)] == pytest.approx([0.5, 1, 1])


@pytest.mark.parametrize("schedule", ["constant", "multistep", "cosine", "one-cycle"])
def test_rates_are_defined_everywhere(schedule: str) -> None:
    for epochs in (0, 1, 3):
        plan = Recipe(epochs=epochs, lr_schedule=schedule, milestones=(0.5,), warmup=0.25)
        for position in (0, 0.1, 1, 2.9, 3, 7):
            assert 0 <= plan.rate(position) <= plan.learning_rate


@pytest.mark.parametrize(("epochs", "expected"), [(182, 8), (20, 1), (91, 4), (1, 1), (0, 0), (40, 2)])
def test_rewind_epoch(epochs: int, expected: int) -> None:
    assert Recipe(epochs=epochs).rewind_epoch == expected


def test_the_recipe_of_jia2023() -> None:
    plan = RECIPES["jia2023"]
    assert (plan.epochs, plan.batch_size, plan.learning_rate, plan.momentum, plan.weight_decay, plan.select) == (
        182, 256, 0.1, 0.9, 5e-4, "best",
    )  # fmt: skip
    assert plan.rewind_epoch == 8
    assert [plan.rate(epoch) for epoch in (0, 90.9, 91, 135.9, 136, 181)] == pytest.approx(
        [0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    )
    assert (plan.lr_schedule, plan.nesterov, plan.augment) == ("multistep", False, "crop-flip")


def test_round_trip_and_overrides() -> None:
    for plan in (*RECIPES.values(), Recipe(lr_schedule="multistep", milestones=(0.5,))):
        assert get_recipe(json.loads(json.dumps(plan.to_json()))) == plan
    assert get_recipe("jia2023", epochs=3).epochs == 3
    assert get_recipe({"epochs": 2}, epochs=3) == Recipe(epochs=3)
    assert get_recipe(RECIPES["one-cycle"]) is not None


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("jia2024", {}, "did you mean 'jia2023'"),
        ("one-cycle", {"epoch": 3}, "did you mean 'epochs'"),
        ("one-cycle", {"lr_schedule": "cosin"}, "did you mean 'cosine'"),
        ("one-cycle", {"select": "first"}, "`best` or `last`"),
        ("one-cycle", {"epochs": -1}, "epochs = -1 is out of range"),
        ("one-cycle", {"epochs": 2.5}, "epochs must be int"),
        ("one-cycle", {"epochs": "3"}, "epochs must be int"),
        ("one-cycle", {"epochs": True}, "epochs must be int"),
        ("one-cycle", {"batch_size": 0}, "batch_size = 0"),
        ("one-cycle", {"learning_rate": float("nan")}, "learning_rate must be a finite number"),
        ("one-cycle", {"learning_rate": "0.1"}, "learning_rate must be a finite number"),
        ("one-cycle", {"learning_rate": -0.1}, "learning_rate = -0.1"),
        ("one-cycle", {"momentum": 1.0}, "momentum = 1.0"),
        ("one-cycle", {"weight_decay": -1e-4}, "weight_decay"),
        ("one-cycle", {"warmup": 1.5}, "warmup = 1.5"),
        ("one-cycle", {"milestones": (91,)}, "milestones"),
        ("one-cycle", {"milestones": 3}, "milestones"),
        ("one-cycle", {"milestones": ("a",)}, "milestones"),
    ],
)
def test_invalid_recipes_are_errors(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        get_recipe(name, **changes)
    assert message in str(caught.value)


def test_the_short_recipe() -> None:
    """Plans and configurations name it without its numbers, so they stay."""
    plan = RECIPES["one-cycle"]
    assert (plan.epochs, plan.batch_size, plan.learning_rate, plan.momentum, plan.weight_decay, plan.warmup) == (
        20, 128, 0.1, 0.9, 5e-4, 0.25,
    )  # fmt: skip
    assert (plan.lr_schedule, plan.nesterov, plan.augment, plan.select) == ("one-cycle", True, "none", "last")


def test_the_ends_of_the_range_of_a_field() -> None:
    """What belongs to a range is accepted, and the next value is refused, whatever the schedule."""
    fraction = ([0.0, 1.0], [-1e-9, 1 + 1e-9, math.nan])
    unbounded = ([0.0, 1e30], [-1e-9, math.inf, math.nan])
    ranges: dict[str, tuple[list[Any], list[Any]]] = {
        "epochs": ([0, 10**6], [-1]), "batch_size": ([1, 10**6], [0]), "learning_rate": unbounded,
        "weight_decay": unbounded, "lr_decay": unbounded, "momentum": ([0.0, 1 - 1e-9], [-1e-9, 1.0, math.nan]),
        "warmup": fraction, "rewind": fraction,
        "milestones": ([(), (0.0, 1.0)], [(-1e-9,), (0.5, 1 + 1e-9), (math.nan,)]),
    }  # fmt: skip
    for field, (inside, outside) in ranges.items():
        for value in inside:
            assert getattr(Recipe(**{"epochs": 1, field: value}), field) == value
        for value in outside:
            with pytest.raises(ConfigError, match=field):
                Recipe(**{"epochs": 1, field: value})
