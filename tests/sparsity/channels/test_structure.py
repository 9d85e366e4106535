"""Traces are kept by structure: equal networks are traced once, and any other setting makes another trace."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import fx, nn

from expunge.models import Architecture, model_names
from expunge.sparsity.channels import groups
from expunge.sparsity.channels.groups import find_channels
from expunge.sparsity.channels.structure import structure_key

SHAPES = {"mlp": (30,), "cnn1d": (9, 128), "lenet5": (1, 28, 28), "small-cnn": (1, 8, 8)}


def small() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(groups, "_traced", type(groups._traced)())
    found: list[str] = []
    trace = fx.Tracer.trace

    def counted(self: fx.Tracer, root: nn.Module, *arguments: object) -> fx.Graph:
        found.append(type(root).__name__)
        return trace(self, root, *arguments)

    monkeypatch.setattr(fx.Tracer, "trace", counted)
    return found


@pytest.mark.parametrize("name", model_names())
def test_a_kept_trace_equals_a_new_one_with_the_weights_of_the_network(name: str, traces: list[str]) -> None:
    network = Architecture(name, {}, SHAPES.get(name, (3, 32, 32)), 10)
    find_channels(network.build(0), network.input_shape)
    model = network.build(1)
    kept = find_channels(model, network.input_shape)
    assert len(traces) == 1
    groups._traced.clear()
    new = find_channels(model, network.input_shape)
    assert len(traces) == 2
    assert (kept.units, kept.producers, list(kept.axes)) == (new.units, new.producers, list(new.axes))
    assert all(np.array_equal(kept.axes[axis], new.axes[axis]) for axis in new.axes)
    assert [(n.name, n.op, str(n.target)) for n in kept.graph.graph.nodes] == [
        (n.name, n.op, str(n.target)) for n in new.graph.graph.nodes
    ]
    assert kept.padding.keys() == new.padding.keys()
    x = torch.rand(2, *network.input_shape)
    with torch.no_grad():
        assert torch.equal(kept.graph(x), new.graph(x))
        assert torch.equal(kept.graph(x), model.eval()(x))


def _change_stride(model: nn.Sequential) -> None:
    model[0].stride = (2, 2)


def _change_type(model: nn.Sequential) -> None:
    model[2] = nn.Tanh()


def _change_forward(model: nn.Sequential) -> None:
    model[2].forward = lambda x: x


def _add_hook(model: nn.Sequential) -> None:
    model[2].register_forward_hook(lambda module, args, output: output * 2)


def _tie(model: nn.Sequential) -> None:
    model[1].bias = model[1].weight


@pytest.mark.parametrize("change", [_change_stride, _change_type, _change_forward, _add_hook, _tie])
def test_another_structure_has_another_key_or_none(change: Callable[[nn.Sequential], None]) -> None:
    one, other = small(), small()
    assert structure_key(one) == structure_key(other)
    change(other)
    assert structure_key(other) != structure_key(one)


def test_settings_of_another_type_differ() -> None:
    one, other = small(), small()
    one.flag, other.flag = 1, True
    assert structure_key(one) != structure_key(other)
    other.flag = {"a": 1}
    assert structure_key(other) is None


def test_another_shape_of_a_record_is_another_trace(traces: list[str]) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    for size in (8, 8, 9):
        find_channels(model, (1, size, size))
    assert len(traces) == 2


def test_channels_of_a_kept_trace_cannot_be_changed() -> None:
    channels = find_channels(small(), (1, 8, 8))
    with pytest.raises(ValueError, match="read-only"):
        channels.axes["0.weight", 0][0] = 5
