"""Masked weights are +0.0 after every step, with any optimiser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from small_networks import network, random_mask, recipe
from torch import nn

from expunge.core.mask import Mask, MaskProvenance
from expunge.data.records import Records
from expunge.training import Context, MaskKeeper, Runtime, Steps, fit


@pytest.fixture(scope="module")
def rows(digits: Records) -> np.ndarray:
    return np.arange(100)  # the last batch of 32 holds 4


def assert_pruned_weights_are_zero(mask: Mask, model: nn.Module) -> None:
    assert mask.count_violations(model) == {}


@pytest.mark.parametrize("changes", [{}, {"nesterov": True}, {"weight_decay": 0.5}, {"momentum": 0.0}])
def test_masked_weights_are_zero_after_every_step(
    digits: Records, rows: np.ndarray, cpu: Runtime, changes: dict[str, Any]
) -> None:
    model, steps = network(), []
    mask = random_mask(model)

    def check(m: nn.Module, epoch: int, rate: float) -> None:
        steps.append(rate)
        assert_pruned_weights_are_zero(mask, m)

    with torch.no_grad():
        model[0].weight.fill_(float("inf"))
        model[0].weight.masked_fill_(mask.kept["0.weight"], 0.1)
    fit(model, rows, recipe(**changes), Context(digits, cpu), mask=mask, steps=Steps(after_step=check))
    assert len(steps) == 12
    kept = model[5].weight[mask.kept["5.weight"]]
    assert (kept != 0).all()


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
def test_keeper_works_with_any_optimiser(name: str, channels_last: bool) -> None:
    model = network(batch_norm=False)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    mask = random_mask(model)
    optimiser = OPTIMISERS[name](model.parameters())
    # the worst case: moments that were accumulated without the mask change the masked weights
    for _ in range(2):
        model(torch.rand(8, 1, 8, 8)).square().sum().backward()
        optimiser.step()
    keeper = MaskKeeper(model, mask)
    assert_pruned_weights_are_zero(mask, model)
    for _ in range(5):
        optimiser.zero_grad()
        (model(torch.rand(8, 1, 8, 8)).square().sum() * 1e3).backward()
        keeper.before_step()
        for key, kept in mask.kept.items():
            assert (dict(model.named_parameters())[key].grad[~kept] == 0).all()
        optimiser.step()
        keeper.after_step()
        assert_pruned_weights_are_zero(mask, model)


def test_without_the_keeper_the_check_fails() -> None:
    """Negative control: weight decay and old moments change masked weights."""
    model = network(batch_norm=False)
    optimiser = OPTIMISERS["SGD"](model.parameters())
    mask = random_mask(model)
    model(torch.rand(8, 1, 8, 8)).sum().backward()
    mask.apply_(model)
    optimiser.step()
    with pytest.raises(AssertionError):
        assert_pruned_weights_are_zero(mask, model)


def test_keeper_handles_infinite_gradients() -> None:
    model = network(batch_norm=False)
    mask = random_mask(model)
    keeper = MaskKeeper(model, mask)
    optimiser = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    model[0].weight.grad[~mask.kept["0.weight"]] = float("nan")
    model[5].weight.grad[~mask.kept["5.weight"]] = float("-inf")
    keeper.before_step()
    optimiser.step()
    keeper.after_step()
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert_pruned_weights_are_zero(mask, model)


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_moments_of_weights_that_were_just_pruned_are_cleared(name: str) -> None:
    """Those of the others, and the number of steps, stay."""
    torch.manual_seed(0)
    layer = nn.Linear(6, 4)
    more = {"momentum": 0.9} if name == "SGD" else {}
    optimiser = getattr(torch.optim, name)(layer.parameters(), lr=0.1, **more)
    layer(torch.randn(8, 6)).square().sum().backward()
    optimiser.step()
    kept = torch.rand(4, 6) > 0.5
    before = {key: torch.as_tensor(value).clone() for key, value in optimiser.state[layer.weight].items()}
    MaskKeeper(layer, Mask({"weight": kept}, MaskProvenance("example"))).clear_moments(optimiser)
    moments = [key for key, value in before.items() if value.ndim]
    assert len(moments) == (1 if name == "SGD" else 2)
    for key, value in optimiser.state[layer.weight].items():
        assert torch.equal(value, before[key] * kept if key in moments else before[key]), key
    assert all(bool((before[key][~kept] != 0).any()) for key in moments)
    bias = [value for value in optimiser.state[layer.bias].values() if torch.is_tensor(value) and value.ndim]
    assert bias
    assert all(bool((value != 0).any()) for value in bias)
