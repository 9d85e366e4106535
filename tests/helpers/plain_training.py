"""Plain PyTorch training, without anything of the training loop: only the batches are the package's."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import nn

from expunge.core.seeds import derive
from expunge.core.trained import Trained
from expunge.data.batches import Batches
from expunge.data.records import Records

Batch = tuple[torch.Tensor, torch.Tensor]


def method_seed(seed: int, name: str) -> int:
    """The seed of a method's training (docs/adding-a-method.md)."""
    return derive(seed, "method", name)


def batches_of(records: Records, ids: Iterable[str], size: int, seed: int, epoch: int) -> Iterator[Batch]:
    """The batches of one epoch, in the documented order."""
    rows = records.rows(list(ids))
    return Batches(records, rows, batch_size=size).epoch(seed, epoch)


def all_inputs(records: Records, ids: Iterable[str]) -> Batch:
    """All records as one batch."""
    rows = records.rows(list(ids))
    x = torch.from_numpy(np.array(records.features)[rows]).float()
    x = x / 255 if records.features is not None and records.features.dtype == np.uint8 else x
    return x, torch.from_numpy(records.labels[rows])


def masks_of(trained: Trained) -> dict[str, torch.Tensor]:
    return {} if trained.mask is None else dict(trained.mask.kept)


def step(
    model: nn.Module, optimiser: torch.optim.Optimizer, loss: torch.Tensor, masks: dict[str, torch.Tensor]
) -> None:
    """One step; pruned weights have no gradient and stay 0."""
    optimiser.zero_grad()
    loss.backward()
    parameters = dict(model.named_parameters())
    for name, kept in masks.items():
        parameters[name].grad[~kept] = 0.0  # type: ignore[index]
    optimiser.step()
    with torch.no_grad():
        for name, kept in masks.items():
            parameters[name][~kept] = 0.0


def train_mode(model: nn.Module, *, frozen: bool = False) -> None:
    model.train()
    for module in model.modules():
        if frozen and isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def sgd(model: nn.Module, rate: float, decay: float = 5e-4) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=decay)


def copy_of(trained: Trained) -> nn.Module:
    return copy.deepcopy(trained.model)


def error_of(model: nn.Module, records: Records, ids: Iterable[str]) -> float:
    """Percent of records that a model predicts wrongly, in evaluation mode."""
    x, y = all_inputs(records, ids)
    with torch.no_grad():
        return 100 * float((copy.deepcopy(model).eval()(x).argmax(1) != y).double().mean())


def assert_same(found: nn.Module, expected: nn.Module, tolerance: float = 1e-6) -> None:
    """Parameters and buffers are equal up to the tolerance."""
    ours, theirs = found.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(
            ours[name], tensor, rtol=0, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


def train_by_hand(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    batches: Iterable[Batch],
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    masks: dict[str, torch.Tensor],
    *,
    frozen: bool = False,
) -> None:
    """One pass: `loss(inputs, labels)`."""
    train_mode(model, frozen=frozen)
    for x, y in batches:
        step(model, optimiser, loss(x, y), masks)
