"""Running statistics, found by what forward passes change: InstanceNorm, custom layers, layers called twice."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from expunge.core.errors import TrainingError
from expunge.core.hashing import hash_tensors
from expunge.data.batches import Batches
from expunge.data.records import Records
from expunge.training import Context, Recipe, Runtime
from expunge.training.batchnorm import find_running_modules, re_estimate, set_training_mode
from expunge.training.loop import Steps, fit

SHAPE = (1, 8, 8)


class Centre(nn.Module):
    """Subtracts a running mean of its input, kept as a buffer, a frozen parameter, or both; with a constant buffer."""

    def __init__(self, *, always: bool = False) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(1))
        self.held = nn.Parameter(torch.zeros(1), requires_grad=False)
        self.register_buffer("constant", torch.ones(1))
        self.always = always

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training or self.always:
            with torch.no_grad():
                self.centre.lerp_(x.mean(), 0.1)
                self.held.add_(1)
        return (x - self.centre) * self.constant


class Twice(nn.Module):
    """One normalisation layer in two places."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm, self.out = norm, nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.norm(3 * self.norm(x) + 1).flatten(1))


def head(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 10))


def train(model: nn.Module, records: Records, cpu: Runtime, batch_norm: str, count: int = 40) -> None:
    recipe = Recipe(epochs=1, batch_size=20)
    fit(model, np.arange(count), recipe, Context(records, cpu), steps=Steps(batch_norm=batch_norm))


INSTANCE = lambda: head(nn.InstanceNorm2d(1, track_running_stats=True))  # noqa: E731
SPECTRAL = lambda: nn.Sequential(nn.Flatten(), parametrizations.spectral_norm(nn.Linear(64, 10)))  # noqa: E731


@pytest.mark.parametrize("make", [INSTANCE, lambda: head(Centre()), lambda: head(nn.BatchNorm2d(1)), SPECTRAL])
def test_frozen_buffers_do_not_move(make: Callable[[], nn.Module], digits: Records, cpu: Runtime) -> None:
    frozen, moving = make(), make()
    before = hash_tensors(dict(frozen.named_buffers()))
    train(frozen, digits, cpu, "frozen", count=41)
    train(moving, digits, cpu, "train")
    assert hash_tensors(dict(frozen.named_buffers())) == before
    assert hash_tensors(dict(moving.named_buffers())) != before


def test_a_frozen_parameter_that_moves_is_frozen_too(digits: Records, cpu: Runtime) -> None:
    model = head(Centre())
    train(model, digits, cpu, "frozen")
    assert model[0].held.item() == 0
    train(model, digits, cpu, "train")
    assert model[0].held.item() == 2  # two batches


def test_what_moves_in_evaluation_mode_cannot_be_frozen(digits: Records, cpu: Runtime) -> None:
    model = head(Centre(always=True))
    with pytest.raises(TrainingError, match=r"0\.(held|centre): .*cannot be frozen"):
        train(model, digits, cpu, "frozen")
    assert model[0].held.item() == 0


def test_children_of_a_frozen_module_keep_training() -> None:
    class Outer(Centre):
        def __init__(self) -> None:
            super().__init__()
            self.dropout = nn.Dropout(0.5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.dropout(super().forward(x))

    model = head(Outer())
    set_training_mode(model, frozen=True, input_shape=SHAPE)
    assert (model[0].training, model[0].dropout.training) == (False, True)
    assert find_running_modules(model, SHAPE) == [model[0]]


@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_layer_that_is_called_twice_averages_over_both_calls(
    digits: Records, cpu: Runtime, momentum: float | None
) -> None:
    torch.manual_seed(0)
    model = Twice(nn.BatchNorm2d(1, momentum=momentum))
    batches = list(Batches(digits, np.arange(50), batch_size=20).in_order())
    re_estimate(model, batches, cpu)
    means, variances, rows = [], [], []
    for x, _ in batches:
        x = x.double()
        z = (x - x.mean()) / torch.sqrt(x.var(unbiased=False) + 1e-5)  # the output of the first call
        for call in (x, 3 * z + 1):
            means.append(len(x) * call.mean())
            variances.append(len(x) * call.var())
            rows.append(len(x))
    assert model.norm.running_mean.item() == pytest.approx(float(sum(means)) / sum(rows), rel=1e-5)
    assert model.norm.running_var.item() == pytest.approx(float(sum(variances)) / sum(rows), rel=1e-5)
    assert model.norm.momentum == momentum


def test_one_layer_in_two_places(digits: Records, cpu: Runtime) -> None:
    """The same module under two names: its statistics are those of both inputs."""
    norm = nn.BatchNorm2d(1)
    model = nn.Sequential(norm, nn.Tanh(), norm, nn.Flatten(), nn.Linear(64, 10))
    batches = list(Batches(digits, np.arange(40), batch_size=20).in_order())
    re_estimate(model, batches, cpu)
    means = []
    for x, _ in batches:
        x = x.double()
        z = torch.tanh((x - x.mean()) / torch.sqrt(x.var(unbiased=False) + 1e-5))
        means += [float(x.mean()), float(z.mean())]
    assert norm.running_mean.item() == pytest.approx(float(np.mean(means)), rel=1e-5)


def test_instance_norm_is_re_estimated(digits: Records, cpu: Runtime) -> None:
    model = INSTANCE()
    model[0].running_mean.fill_(9.0)
    batches = list(Batches(digits, np.arange(50), batch_size=20).in_order())
    assert re_estimate(model, batches, cpu) == 50
    x = torch.cat([x for x, _ in batches]).double()
    assert model[0].running_mean.item() == pytest.approx(float(x.mean()), rel=1e-5)
    assert model[0].running_var.item() == pytest.approx(float(x.flatten(1).var(1).mean()), rel=1e-5)
