"""Multiply-adds of built-in networks: counted by running small ones, and on the meta device, with equal results."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

from expunge.models import Architecture, model_names
from expunge.models import size as sizes

SHAPES = {"cnn1d": (9, 60), "mlp": (17,), "small-cnn": (2, 9, 5)}


def network_class(name: str) -> type[nn.Module]:
    return type(Architecture(name, {}, SHAPES.get(name, (3, 32, 32)), 7).build())


@pytest.mark.parametrize("name", sorted(model_names()))
def test_running_and_tracing_count_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = SHAPES.get(name, (3, 32, 32))
    options = json.dumps(Architecture(name, {}, shape, 7).options)
    network = network_class(name)
    ran = sizes._pass_one_record(network, options, shape, 7, "cpu")
    assert ran == sizes._pass_one_record(network, options, shape, 7, "meta") > 0
    monkeypatch.setattr(sizes, "_RUN_WORK", ran // 2)  # the bound that stops a run is never below the work
    with pytest.raises(sizes._TooMuchWork):
        sizes._pass_one_record(network, options, shape, 7, "cpu")
    sizes._count_work.cache_clear()
    assert sizes._count_work(network, options, shape, 7) == ran


@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [("mlp", {"widths": (2**14, 2**12)}, (4,)), ("small-cnn", {}, (1, 2**13, 2**13))],
    ids=["many parameters", "large records"],
)
def test_large_networks_are_not_run(
    name: str, options: dict[str, Any], shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, devices = network_class(name), []
    monkeypatch.setattr(sizes, "_pass_one_record", lambda *arguments: devices.append(arguments[-1]) or 1)
    sizes._count_work.cache_clear()
    text = json.dumps(Architecture(name, options, shape, 7).options)
    sizes._count_work(network, text, shape, 7)
    sizes._count_work.cache_clear()
    assert devices == ["meta"]


def test_counting_draws_no_random_numbers() -> None:
    network = network_class("small-cnn")
    sizes._count_work.cache_clear()
    sizes._count_numbers.cache_clear()
    before = torch.get_rng_state()
    sizes.check_size("small-cnn", network, {"widths": [3, 4]}, (1, 9, 9), 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_bound_of_the_work() -> None:
    convolution = nn.Conv2d(2, 3, 3, padding=1, bias=False)
    x = torch.zeros(1, 2, 5, 6)
    assert sizes._bound_work(convolution, x) == (5 + 2) * (6 + 2) * convolution.weight.numel()
    assert sizes._bound_work(convolution, x) >= convolution(x).numel() * 2 * 9
    assert sizes._bound_work(nn.Linear(6, 4, bias=False), x) == 10 * 24
