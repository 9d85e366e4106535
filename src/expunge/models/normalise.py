"""Input normalisation as part of the model: its statistics are buffers, applied first."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from expunge.core.errors import ModelError
from expunge.core.files import PathLike, read_tensors
from expunge.core.split import Ids
from expunge.data.records import Normalisation, Records

#: Records read at once while statistics are computed.
_CHUNK = 1024


class Normalise(nn.Module):
    """(x - mean) / std for each channel (axis 1) of a batch `N x C x ...`.

    The statistics are two buffers of `C` numbers. In weights files they have the names `mean` and `deviation`; the
    latter is the standard deviation.

    Args:
        normalisation: the statistics.
        channels: size C of axis 1.

    Raises:
        ModelError: the statistics are not `channels` finite numbers each, or a standard deviation is not positive.

    Example:
        >>> layer = Normalise(Normalisation(mean=(1.0,), std=(2.0,)), channels=1)
        >>> layer(torch.tensor([[3.0], [1.0]])).tolist()
        [[1.0], [0.0]]
    """

    #: No forward pass changes the buffers (`expunge.core.trained.find_running_tensors`).
    constant_buffers = True
    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, normalisation: Normalisation, channels: int) -> None:
        super().__init__()
        for name, buffer in (("mean", "mean"), ("std", "deviation")):
            values = torch.tensor(getattr(normalisation, name), dtype=torch.float32).reshape(-1)
            if values.numel() != channels:
                raise ModelError(
                    f"the normalisation has {values.numel()} numbers ({name}), the input {channels} channels"
                )
            if not bool(torch.isfinite(values).all()) or (name == "std" and not bool((values > 0).all())):
                raise ModelError(f"the {name} of the normalisation has invalid values", hint=str(values.tolist()))
            self.register_buffer(buffer, values)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise a batch `N x C x ...`."""
        shape = (1, -1) + (1,) * (x.dim() - 2)
        return (x - self.mean.view(shape)) / self.deviation.view(shape)

    def extra_repr(self) -> str:
        """The number of channels."""
        return f"channels={self.mean.numel()}"


class Normalised(nn.Module):
    """A custom network with `Normalise` before it; the names of its parameters begin with `network.`."""

    def __init__(self, normalise: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.normalise = normalise
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`N x ...` to `N x K` logits."""
        return self.network(self.normalise(x))


def make_normalise(normalisation: Normalisation | None, input_shape: tuple[int, ...]) -> nn.Module:
    """Make the module that a network applies first: `Normalise`, or the identity if there are no statistics."""
    return nn.Identity() if normalisation is None else Normalise(normalisation, input_shape[0])


def read_statistics(path: PathLike) -> Normalisation | None:
    """Read the normalisation statistics that a weights file has, as statistics of training records; None: it has none.

    Args:
        path: a safetensors file.

    Raises:
        FileError: the file is missing, damaged or a pickle.
    """
    tensors, _ = read_tensors(path)
    found = [tensors.get(f"normalise.{name}") for name in ("mean", "deviation")]
    if found[0] is None or found[1] is None:
        return None
    mean, std = (tuple(map(float, tensor.reshape(-1).tolist())) for tensor in found if tensor is not None)
    return Normalisation(mean, std, "training records")


def measure_normalisation(records: Records, record_ids: Ids) -> Normalisation:
    """Compute mean and population standard deviation of each channel over records, in the units of the model's input.

    The channel is axis 1 of a batch; for flat records `N x F`, each feature is a channel. uint8 features are divided by
    255. The standard deviation of a constant channel is set to 1. The origin is `training records`.

    Args:
        records: the records.
        record_ids: ids of the records to use.

    Raises:
        ModelError: there are no records.

    Example:
        >>> features = np.asarray([[0.0, 5.0], [2.0, 5.0]], dtype=np.float32)
        >>> records = Records("toy", ["r0", "r1"], [0, 1], ("no", "yes"), features)
        >>> statistics = measure_normalisation(records, records.record_ids)
        >>> statistics.mean, statistics.std
        ((1.0, 5.0), (1.0, 1.0))
    """
    rows = np.sort(records.rows(record_ids))
    if not len(rows):
        raise ModelError("no training records to compute the normalisation statistics from", where=records.name)
    channels = records.input_shape[0]
    total, low, high = np.zeros(channels), np.full(channels, np.inf), np.full(channels, -np.inf)
    count = 0
    for part in _iterate_chunks(records, rows):
        count += part.shape[1]
        total += part.sum(axis=1)
        low, high = np.minimum(low, part.min(axis=1)), np.maximum(high, part.max(axis=1))
    mean = total / count
    square = np.zeros(channels)
    for part in _iterate_chunks(records, rows):
        square += np.square(part - mean[:, None]).sum(axis=1)
    std = np.sqrt(square / count).astype(np.float32)
    std[(low == high) | (std == 0)] = 1.0
    return Normalisation(tuple(mean.astype(np.float32).tolist()), tuple(std.tolist()), origin="training records")


def _iterate_chunks(records: Records, rows: NDArray[np.int64]) -> Iterator[NDArray[np.float64]]:
    """Yield values in float64, `C x M`, for some records at a time."""
    for start in range(0, len(rows), _CHUNK):
        some = rows[start : start + _CHUNK]
        block = records.read_batch(some)
        scale = 255.0 if block.dtype == np.uint8 else 1.0
        yield np.moveaxis(block, 1, 0).reshape(block.shape[1], -1).astype(np.float64) / scale
