"""Batches of records on a device: from memory, or streamed through a `DataLoader`, in the same order."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import warnings
import weakref
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import DataLoader, Dataset

from expunge.core.errors import ConfigError, DataError
from expunge.core.seeds import RecordedOrder, derive, epoch_order, torch_generator
from expunge.core.show import repr_fields

from .records import Records
from .transforms import AUGMENTATIONS, check_shape, crop_and_flip, draw_augmentation, get_augmentation, to_input

Batch = tuple[torch.Tensor, torch.Tensor]

_ON_DEVICE: weakref.WeakKeyDictionary[Records, dict[torch.device, Batch]] = weakref.WeakKeyDictionary()


def copy_to_device(records: Records, device: torch.device) -> Batch:
    """Copy features and labels of all records to a device, once for the lifetime of the records.

    On the CPU the tensors share the memory of the arrays and must not be modified.
    """
    if device.type == "cuda" and device.index is None:  # `cuda` and `cuda:0` share one copy
        device = torch.device("cuda", torch.cuda.current_device())
    copies = _ON_DEVICE.setdefault(records, {})
    if device not in copies:
        assert records.features is not None
        with warnings.catch_warnings():  # torch warns that read-only arrays could be modified
            warnings.simplefilter("ignore", UserWarning)
            features = torch.from_numpy(np.ascontiguousarray(records.features))
            labels = torch.from_numpy(records.labels)
        copies[device] = (features.to(device), labels.to(device))
    return copies[device]


def find_part(size: int, number: int, parts: int) -> tuple[int, int]:
    """The first position of part `number` of a batch of `size` records, and the one after its last.

    The parts differ by one record at most. If there are more parts than records, some are empty.

    Example:
        >>> [find_part(5, number, 3) for number in range(3)]
        [(0, 2), (2, 4), (4, 5)]
    """
    return -(-size * number // parts), -(-size * (number + 1) // parts)


@dataclasses.dataclass(frozen=True, eq=False)
class Batches:
    """Batches of some of the records.

    Attributes:
        records: the records.
        rows: `n` row numbers into `records`.
        batch_size: records in a batch; the last batch can be smaller, and no record is dropped.
        least: a last batch of fewer records is joined to the batch before it.
        order: the recorded orders of epochs; None: by hash of seed, epoch and record id.
        device: device of the batches. Records in memory are copied to it once (`uint8` stays `uint8`).
        augment: a name of `AUGMENTATIONS`; only `epoch` augments.
        channels_last: 4-D batches have channels-last memory order.
        workers: number of processes that read streamed records; with 0, this process reads them.
        part: `(r, W)`: yield part r of W of every batch, `find_part` of its records, with the draws that they have in
            the whole batch. If that part is empty, the first record of the batch stands in its place.

    Raises:
        DataError: a row does not exist, or the augmentation does not fit the shape of a record.
        ConfigError: the augmentation is unknown, the batch size is below 1, or the part is none.

    Example:
        >>> import expunge
        >>> records = expunge.load_records("digits")
        >>> batches = Batches(records, range(100), batch_size=64)
        >>> [(tuple(x.shape), y.dtype) for x, y in batches.epoch(seed=0, epoch=0)]
        [((64, 1, 8, 8), torch.int64), ((36, 1, 8, 8), torch.int64)]
        >>> second = dataclasses.replace(batches, part=(1, 2))
        >>> [len(y) for _, y in second.epoch(seed=0, epoch=0)]
        [32, 18]
    """

    records: Records
    rows: NDArray[np.int64]
    batch_size: int
    device: torch.device | str = "cpu"
    augment: str = "none"
    channels_last: bool = False
    workers: int = 0
    least: int = 1
    order: RecordedOrder | None = None
    part: tuple[int, int] = (0, 1)

    __repr__ = repr_fields

    def __init__(
        self,
        records: Records,
        rows: ArrayLike,
        *,
        batch_size: int,
        device: torch.device | str = "cpu",
        augment: str = "none",
        channels_last: bool = False,
        workers: int = 0,
        least: int = 1,
        order: RecordedOrder | None = None,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        chosen = np.asarray(rows, dtype=np.int64).reshape(-1)
        for name, value in (
            ("records", records),
            ("rows", chosen),
            ("batch_size", batch_size),
            ("device", torch.device(device)),
            ("augment", augment),
            ("channels_last", channels_last),
            ("workers", workers),
            ("least", least),
            ("order", order),
            ("part", part),
        ):
            object.__setattr__(self, name, value)
        if not 0 <= part[0] < part[1]:
            raise ConfigError(f"there is no part {part[0]} among {part[1]}", where="part")
        if batch_size < 1:
            raise ConfigError(f"a batch has at least 1 record, not {batch_size}", where="batch_size")
        if len(chosen) and (chosen.min() < 0 or chosen.max() >= len(records)):
            bad = int(chosen[(chosen < 0) | (chosen >= len(records))][0])
            raise DataError(f"there is no row {bad} among {len(records)} records", where=records.name)
        if get_augmentation(augment) != AUGMENTATIONS["none"]:
            check_shape(records.input_shape, augment, records.name)

    def __len__(self) -> int:
        return len(self.sizes)

    @functools.cached_property
    def sizes(self) -> list[int]:
        """Number of records in each whole batch."""
        whole, rest = divmod(self.count, self.batch_size)
        sizes = [self.batch_size] * whole
        if rest and sizes and rest < self.least:
            sizes[-1] += rest
        elif rest:
            sizes.append(rest)
        return sizes

    @property
    def count(self) -> int:
        """Number of records."""
        return len(self.rows)

    @functools.cached_property
    def _keys(self) -> NDArray[np.uint64]:
        return self.records.keys[self.rows]

    def epoch(self, seed: int, epoch: int) -> Iterator[Batch]:
        """Yield the batches `(x, y)` of one epoch in the order of that epoch, augmented.

        `x` is `B x ...` float32 (int64 if the records are) and `y` is `B` int64, on the device. Order and augmentation
        depend only on seed, epoch and record ids.
        """
        order = epoch_order(self._keys, seed, epoch) if self.order is None else self.order.order(self._keys, epoch)
        rows, keys = self.rows[order], self._keys[order]
        chosen, sizes = self._choose_part()
        return self._iterate(rows[chosen], keys[chosen], sizes, self.augment, seed, epoch)

    def in_order(self) -> Iterator[Batch]:
        """Yield the batches `(x, y)` in the given order, not augmented."""
        chosen, sizes = self._choose_part()
        return self._iterate(self.rows[chosen], self._keys[chosen], sizes, "none", 0, 0)

    def _choose_part(self) -> tuple[NDArray[np.int64] | slice, list[int]]:
        """The positions of the records of the part among those of an epoch, and how many are in each batch."""
        if self.part[1] == 1:
            return slice(None), self.sizes
        ends = np.cumsum(self.sizes, dtype=np.int64).tolist()
        found = []
        for size, end in zip(self.sizes, ends, strict=True):
            start, stop = find_part(size, *self.part)
            found.append(np.arange(start, stop) + (end - size) if stop > start else np.asarray([end - size]))
        return np.concatenate([np.zeros(0, np.int64), *found]), [len(positions) for positions in found]

    def _iterate(
        self,
        rows: NDArray[np.int64],
        keys: NDArray[np.uint64],
        sizes: list[int],
        augment: str,
        seed: int,
        epoch: int,
    ) -> Iterator[Batch]:
        device = torch.device(self.device)
        chosen = AUGMENTATIONS[augment]
        draws = None if augment == "none" else draw_augmentation(keys, seed, epoch, chosen).to(device)
        raw = (
            self._iterate_memory(rows, sizes, device)
            if self.records.stream is None
            else self._iterate_stream(rows, sizes, seed, epoch)
        )
        start = 0
        for x, y in raw:
            if draws is not None:
                x = crop_and_flip(x, draws.take(slice(start, start + len(y))))
            start += len(y)
            yield to_input(x, self.channels_last), y

    def _iterate_memory(self, rows: NDArray[np.int64], sizes: list[int], device: torch.device) -> Iterator[Batch]:
        features, labels = copy_to_device(self.records, device)
        for index in torch.from_numpy(rows).to(device).split(sizes) if len(rows) else ():
            yield features.index_select(0, index), labels.index_select(0, index)

    def _iterate_stream(self, rows: NDArray[np.int64], sizes: list[int], seed: int, epoch: int) -> Iterator[Batch]:
        device = torch.device(self.device)
        ends = np.cumsum(sizes, dtype=np.int64).tolist()
        loader: DataLoader[torch.Tensor] = DataLoader(
            _Stream(self.records, rows, seed, epoch),
            batch_sampler=[list(range(end - size, end)) for size, end in zip(sizes, ends, strict=True)],
            num_workers=self.workers,
            collate_fn=_take_whole if reads_rows(self.records) else None,
            pin_memory=device.type == "cuda",
            generator=torch_generator(seed, "stream", epoch),  # otherwise it draws from torch's global state
        )
        start = 0
        for features in loader:
            labels = torch.from_numpy(self.records.labels[rows[start : start + len(features)]])
            start += len(features)
            yield features.to(device, non_blocking=True), labels.to(device)


def _take_whole(parts: list[torch.Tensor]) -> torch.Tensor:
    """The batch that a stream with `read_rows` read as one tensor."""
    return parts[0]


def reads_rows(records: Records) -> bool:
    """Whether the records are streamed by a dataset that reads several items at once."""
    return getattr(records.stream, "read_rows", None) is not None


@contextlib.contextmanager
def _seed_cpu(seed: int) -> Iterator[None]:
    """Seed torch's global CPU generator within the block (`global_rng`, for all devices, takes 0.5 ms per record)."""
    before = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(before)


class _Stream(Dataset[torch.Tensor]):
    """The features of some rows of a stream; draws from torch's global state while an item is read are seeded."""

    def __init__(self, records: Records, rows: NDArray[np.int64], seed: int, epoch: int) -> None:
        self.records, self.rows, self.seed, self.epoch = records, rows, seed, epoch

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, positions: list[int]) -> list[torch.Tensor]:
        """Read a batch: one tensor if the stream reads several items at once, else one for each item."""
        if not reads_rows(self.records):
            return [self[position] for position in positions]
        return [torch.from_numpy(self.records.read_batch(self.rows[positions]))]

    def __getitem__(self, position: int) -> torch.Tensor:
        row = int(self.rows[position])
        record_id = str(self.records.record_ids[row])
        with _seed_cpu(derive(self.seed, "record", self.epoch, record_id)):
            return torch.from_numpy(self.records.read_features(row))
