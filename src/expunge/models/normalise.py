"""Input normalisation that travels with the model: constants as buffers, applied first."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from expunge.core.errors import ModelError
from expunge.core.split import Ids
from expunge.data.records import Normalisation, Records

#: Records read at once while constants are measured.
_CHUNK = 1024


class Normalise(nn.Module):
    """(x - mean) / deviation over axis 1 of a batch `N x C x ...`; mean and deviation are buffers of `C` numbers.

    Args:
        normalisation: the constants.
        channels: size of axis 1, which the constants must have.

    Raises:
        ModelError: the constants are not `channels` finite numbers, or a deviation is not positive.
    """

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, normalisation: Normalisation, channels: int) -> None:
        super().__init__()
        for name in ("mean", "deviation"):
            values = torch.tensor(getattr(normalisation, name), dtype=torch.float32).reshape(-1)
            if values.numel() != channels:
                raise ModelError(
                    f"the normalisation has {values.numel()} numbers ({name}), the input {channels} channels"
                )
            if not bool(torch.isfinite(values).all()) or (name == "deviation" and not bool((values > 0).all())):
                raise ModelError(
                    f"the normalisation's {name} holds values that cannot be used", hint=str(values.tolist())
                )
            self.register_buffer(name, values)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = (1, -1) + (1,) * (x.dim() - 2)
        return (x - self.mean.view(shape)) / self.deviation.view(shape)

    def extra_repr(self) -> str:
        return f"channels={self.mean.numel()}"


class Normalised(nn.Module):
    """A user's network with `Normalise` before it; its parameters stand under `network.`."""

    def __init__(self, normalise: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.normalise = normalise
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(self.normalise(x))


def normalise_module(normalisation: Normalisation | None, input_shape: tuple[int, ...]) -> nn.Module:
    """The module a network applies first: `Normalise`, or the identity where there are no constants."""
    return nn.Identity() if normalisation is None else Normalise(normalisation, input_shape[0])


def measure_normalisation(records: Records, record_ids: Ids) -> Normalisation:
    """Mean and (population) standard deviation a channel over the given records, in the units of the model's input.

    Axis 1 of the batch is the channel; for flat records `N x F` that is every feature. uint8 features are taken as
    x / 255. The deviation of a constant channel is 1. Origin: `training records`.

    Raises:
        ModelError: there are no records to measure.
    """
    rows = np.sort(records.rows(record_ids))
    if not len(rows):
        raise ModelError("no training records to measure the input normalisation on", where=records.name)
    channels = records.input_shape[0]
    total, low, high = np.zeros(channels), np.full(channels, np.inf), np.full(channels, -np.inf)
    count = 0
    for part in _chunks(records, rows):
        count += part.shape[1]
        total += part.sum(axis=1)
        low, high = np.minimum(low, part.min(axis=1)), np.maximum(high, part.max(axis=1))
    mean = total / count
    square = np.zeros(channels)
    for part in _chunks(records, rows):
        square += np.square(part - mean[:, None]).sum(axis=1)
    deviation = np.sqrt(square / count).astype(np.float32)
    deviation[(low == high) | (deviation == 0)] = 1.0
    return Normalisation(tuple(mean.astype(np.float32).tolist()), tuple(deviation.tolist()), origin="training records")


def _chunks(records: Records, rows: NDArray[np.int64]) -> Iterator[NDArray[np.float64]]:
    """Values in float64, `C x M`, a few records at a time."""
    for start in range(0, len(rows), _CHUNK):
        some = rows[start : start + _CHUNK]
        if records.features is not None:
            block = records.features[some]
        else:
            assert records.stream is not None
            block = np.stack([np.asarray(records.stream[int(row)][0]) for row in some])
        scale = 255.0 if block.dtype == np.uint8 else 1.0
        yield np.moveaxis(block, 1, 0).reshape(block.shape[1], -1).astype(np.float64) / scale
