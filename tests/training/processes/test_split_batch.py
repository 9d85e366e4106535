"""Parts of a batch, run in threads that add up their statistics, against the whole batch in plain torch."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from in_double import Centred
from torch import nn

from expunge.data.batches import find_part
from expunge.training.processes.split_batch import SplitBatch, inspect_splitting


class Adder:
    """Sums tensors over threads, as `all_reduce` does over processes."""

    def __init__(self, count: int) -> None:
        self.barrier, self.parts = threading.Barrier(count, timeout=20), [torch.zeros(0)] * count
        self.here = threading.local()

    def __call__(self, tensor: torch.Tensor) -> None:
        self.parts[self.here.number] = tensor.clone()
        self.barrier.wait()
        tensor.copy_(torch.stack(self.parts).sum(0))
        self.barrier.wait()


def in_parts(
    model: nn.Module, x: torch.Tensor, towards: torch.Tensor, count: int, *, synchronise: bool = True
) -> tuple[torch.Tensor, dict[str, torch.Tensor], nn.Module, torch.Tensor]:
    """Outputs, summed gradients, the model and the gradient of the input, from `count` threads."""
    adder = Adder(count)
    models = [copy.deepcopy(model) for _ in range(count)]

    def run(number: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        adder.here.number = number
        start, stop = find_part(len(x), number, count)
        own = (x[start:stop] if stop > start else x[:1]).clone().requires_grad_()
        split = SplitBatch(adder, synchronise=synchronise)
        split.choose(len(x), start, stop)
        with split:
            found = models[number](own)
            loss = (found * towards[start:stop]).sum() if stop > start else (found * 0).sum()
            loss.backward()
        assert own.grad is not None
        return found.detach()[: stop - start], own.grad[: stop - start], number

    with ThreadPoolExecutor(count) as pool:
        parts = list(pool.map(run, range(count)))
    sums = {
        name: torch.stack([dict(m.named_parameters())[name].grad for m in models]).sum(0)  # type: ignore[misc]
        for name, _ in model.named_parameters()
    }
    return torch.cat([p[0] for p in parts]), sums, models[0], torch.cat([p[1] for p in parts])


def make(kind: Callable[[int], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    layer = kind(3).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


KINDS: list[Any] = [
    (nn.BatchNorm2d, (3, 4, 4)),
    (nn.BatchNorm1d, (3,)),
    (lambda n: nn.BatchNorm1d(n, affine=False, momentum=None), (3, 5)),
    (lambda n: nn.BatchNorm2d(n, track_running_stats=False), (3, 2, 2)),
]


@pytest.mark.parametrize(("kind", "shape"), KINDS)
@pytest.mark.parametrize(("size", "count"), [(6, 2), (7, 3), (2, 3)])
def test_batch_norm_of_the_whole_batch(kind: Any, shape: tuple[int, ...], size: int, count: int) -> None:
    layer = make(kind)
    x, towards = torch.randn(2, size, *shape, dtype=torch.double) + 100
    found, gradients, after, of_x = in_parts(layer, x, towards, count)
    leaf = x.clone().requires_grad_()
    expected = layer(leaf)
    (expected * towards).sum().backward()
    assert leaf.grad is not None
    assert torch.allclose(found, expected, rtol=0, atol=1e-9)
    assert torch.allclose(of_x, leaf.grad, rtol=0, atol=1e-9)
    for name, parameter in layer.named_parameters():
        assert torch.allclose(gradients[name], parameter.grad, rtol=1e-12, atol=1e-9)  # type: ignore[arg-type]
    for name, buffer in layer.named_buffers():
        assert torch.allclose(dict(after.named_buffers())[name].double(), buffer.double(), rtol=1e-12, atol=1e-12)


def test_batch_norm_of_the_parts_is_another_result() -> None:
    layer = make(nn.BatchNorm2d)
    x, towards = torch.randn(2, 6, 3, 4, 4, dtype=torch.double)
    found, *_ = in_parts(layer, x, towards, 2, synchronise=False)
    expected = torch.cat([copy.deepcopy(layer)(part) for part in x.split(3)])
    assert torch.equal(found, expected)
    assert float((found - layer(x)).detach().abs().max()) > 0.01


def test_one_value_for_a_channel_is_an_error() -> None:
    split = SplitBatch(lambda tensor: None)
    with split, pytest.raises(ValueError, match="more than 1 value per channel"):
        nn.BatchNorm1d(3)(torch.zeros(1, 3))


DRAWING: list[Any] = [
    (nn.Dropout(0.5), (3,)),
    (nn.Dropout2d(0.5), (3, 2, 2)),
    (nn.AlphaDropout(0.5), (3,)),
    (nn.Sequential(nn.Flatten(0, 1), nn.Dropout(0.5), nn.Unflatten(0, (-1, 4))), (4, 3)),
]


@pytest.mark.parametrize(("layer", "shape"), DRAWING)
@pytest.mark.parametrize(("start", "stop"), [(0, 3), (3, 7)])
def test_draws_are_those_of_the_whole_batch(layer: nn.Module, shape: tuple[int, ...], start: int, stop: int) -> None:
    x = torch.rand(7, *shape) - 0.5
    torch.manual_seed(3)
    expected = layer(x)[start:stop]
    split = SplitBatch(lambda tensor: None)
    split.choose(7, start, stop)
    torch.manual_seed(3)
    leaf = x[start:stop].clone().requires_grad_()
    with split:
        found = layer(leaf)
    assert torch.equal(found, expected)
    assert torch.autograd.grad(found.sum(), leaf)[0].shape == leaf.shape


def mixed_sequence(**options: Any) -> nn.Module:
    return nn.TransformerEncoderLayer(4, 2, 8, **options)


def test_what_cannot_be_split_is_found() -> None:
    assert inspect_splitting(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU()), (3,)).obstacle == ""
    assert "other records" in inspect_splitting(nn.Sequential(nn.Linear(3, 4), Centred()), (3,)).obstacle
    assert inspect_splitting(mixed_sequence(batch_first=True, dropout=0.0), (3, 4)).obstacle == ""
    assert "random draws" in inspect_splitting(mixed_sequence(batch_first=True, dropout=0.5), (3, 4)).obstacle
    assert "other records" in inspect_splitting(mixed_sequence(batch_first=False, dropout=0.0), (3, 4)).obstacle
    assert "random draws" in inspect_splitting(nn.RReLU(), (3,)).obstacle, "it draws for negative entries only"
    assert inspect_splitting(nn.Linear(9, 4), (3,)).obstacle == "", "it does not run: training says so"
    assert inspect_splitting(nn.Dropout(), (3,)).draws
    assert not inspect_splitting(nn.Linear(3, 4), (3,)).draws
