"""Batches: what comes out, in which order; memory and stream alike; removal leaves the others alone."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch

from expunge.core.errors import ConfigError, DataError
from expunge.core.seeds import epoch_order
from expunge.data import Batches, Records
from expunge.data.batches import _ON_DEVICE, copy_to_device

Make = Callable[..., Records]


class Stream:
    """A map-style dataset over the features of other records."""

    def __init__(self, records: Records, noisy: bool = False) -> None:
        self.records, self.noisy = records, noisy

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        assert self.records.features is not None
        x = torch.from_numpy(self.records.features[row])
        if self.noisy:
            x = x.float() / 255 + torch.rand(x.shape)
        return x, int(self.records.labels[row])


def streamed(records: Records, noisy: bool = False) -> Records:
    return Records("small", records.record_ids, records.labels, records.class_names, stream=Stream(records, noisy))


def together(batches: Batches, seed: int, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
    xs, ys = zip(*batches.epoch(seed, epoch), strict=True)
    return torch.cat(xs), torch.cat(ys)


def test_in_order_gives_the_rows_as_they_are(make_images: Make) -> None:
    records = make_images()
    rows = np.asarray([5, 3, 39, 0, 7])
    batches = Batches(records, rows, batch_size=2)
    got = list(batches.in_order())
    assert [len(y) for _, y in got] == [2, 2, 1]
    assert len(batches) == 3
    assert batches.count == 5
    x, y = torch.cat([x for x, _ in got]), torch.cat([y for _, y in got])
    np.testing.assert_array_equal(x.numpy(), records.features[rows].astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(y.numpy(), records.labels[rows])
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64


def test_an_epoch_is_every_row_once_in_the_order_of_the_seeds(make_images: Make) -> None:
    records = make_images()
    rows = np.arange(3, 30)
    x, y = together(Batches(records, rows, batch_size=8), 4, 2)
    order = rows[epoch_order(records.keys[rows], 4, 2)]
    np.testing.assert_array_equal(x.numpy(), records.features[order].astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(y.numpy(), records.labels[order])
    other, _ = together(Batches(records, rows, batch_size=8), 4, 3)
    assert not torch.equal(x, other)


@pytest.mark.parametrize("augment", ["none", "crop-flip"])
def test_removing_records_leaves_order_and_augmentation_of_the_others(make_images: Make, augment: str) -> None:
    records = make_images()
    removed = np.asarray([2, 3, 17, 30])
    rows = np.arange(len(records))
    stays = np.setdiff1d(rows, removed)
    for epoch in range(3):
        x, _ = together(Batches(records, rows, batch_size=7, augment=augment), 9, epoch)
        fewer, _ = together(Batches(records, stays, batch_size=5, augment=augment), 9, epoch)
        kept = ~np.isin(rows[epoch_order(records.keys, 9, epoch)], removed)
        assert torch.equal(x[torch.from_numpy(kept)], fewer)
    plain, _ = together(Batches(records, rows, batch_size=7), 9, 0)
    changed, _ = together(Batches(records, rows, batch_size=7, augment=augment), 9, 0)
    assert torch.equal(plain, changed) == (augment == "none")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_gives_what_memory_gives(make_images: Make, workers: int) -> None:
    records = make_images()
    rows = np.arange(33)
    here = Batches(records, rows, batch_size=10, augment="crop-flip", channels_last=True)
    there = Batches(streamed(records), rows, batch_size=10, augment="crop-flip", channels_last=True, workers=workers)
    for (x, y), (u, v) in zip(here.epoch(1, 1), there.epoch(1, 1), strict=True):
        assert torch.equal(x, u)
        assert torch.equal(y, v)
        assert u.is_contiguous(memory_format=torch.channels_last)
    for (x, _), (u, _) in zip(here.in_order(), there.in_order(), strict=True):
        assert torch.equal(x, u)


def test_what_a_stream_draws_is_seeded_per_record_and_leaves_the_global_state(make_images: Make) -> None:
    records = streamed(make_images(), noisy=True)
    rows = np.arange(12)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, _ = together(Batches(records, rows, batch_size=4), 3, 0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    two, _ = together(Batches(records, rows, batch_size=5), 3, 0)
    assert torch.equal(one, two)
    kept = rows[epoch_order(records.keys[rows], 3, 0)] != 5
    fewer, _ = together(Batches(records, rows[rows != 5], batch_size=4), 3, 0)
    assert torch.equal(one[torch.from_numpy(kept)], fewer)
    assert not torch.equal(one, together(Batches(records, rows, batch_size=4), 4, 0)[0])


def test_memory_batches_leave_the_global_state(make_images: Make) -> None:
    before = torch.get_rng_state()
    together(Batches(make_images(), np.arange(9), batch_size=4, augment="crop-flip"), 0, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_writing_into_a_batch_does_not_touch_the_records(make_images: Make) -> None:
    records = make_images()
    real = Records("real", records.record_ids, records.labels, records.class_names, records.features.astype(np.float32))
    copy = real.features.copy()
    for x, _ in Batches(real, np.arange(len(real)), batch_size=len(real)).in_order():
        x.zero_()
    np.testing.assert_array_equal(real.features, copy)


def test_tensors_are_copied_once_and_freed_with_the_records(make_images: Make) -> None:
    records = make_images()
    device = torch.device("cpu")
    assert copy_to_device(records, device)[0] is copy_to_device(records, device)[0]
    assert copy_to_device(records, device)[0].dtype == torch.uint8
    assert records in _ON_DEVICE
    gone = weakref.ref(records)
    del records
    gc.collect()
    assert gone() is None


def test_read_only_features_are_fine(make_images: Make) -> None:
    records = make_images()
    records.features.flags.writeable = False
    assert len(list(Batches(records, [0, 1], batch_size=2).in_order())) == 1


def test_no_rows_no_batches(make_images: Make) -> None:
    for records in (make_images(), streamed(make_images())):
        batches = Batches(records, [], batch_size=4, augment="crop-flip")
        assert (len(batches), batches.count, list(batches.epoch(0, 0)), list(batches.in_order())) == (0, 0, [], [])


def test_bad_arguments(make_images: Make) -> None:
    records = make_images()
    with pytest.raises(DataError, match="no row 40"):
        Batches(records, [1, 40], batch_size=2)
    with pytest.raises(DataError, match="no row -1"):
        Batches(records, [-1], batch_size=2)
    with pytest.raises(ConfigError, match="at least 1"):
        Batches(records, [1], batch_size=0)
    with pytest.raises(ConfigError, match="crop-flip"):
        Batches(records, [1], batch_size=2, augment="crop-flop")
    flat = Records("flat", ["a", "b"], [0, 1], ("x", "y"), np.zeros((2, 5), np.float32))
    with pytest.raises(DataError, match="flat"):
        Batches(flat, [0], batch_size=1, augment="flip")


class Items(list):  # a list of items is a map-style dataset
    pass


def test_bad_items_of_a_stream_name_the_record() -> None:
    good = np.zeros((1, 4, 4), np.float32)
    for bad, match in (
        ("text", "not str"),
        (np.zeros((1, 5, 4), np.float32), "shape"),
        (np.full((1, 4, 4), np.nan, np.float32), "NaN"),
    ):
        records = Records("s", ["a", "b"], [0, 1], ("x", "y"), stream=Items([(good, 0), (bad, 1)]))
        with pytest.raises(DataError, match=match) as caught:
            list(Batches(records, [0, 1], batch_size=2).in_order())
        assert caught.value.where == "s: b"
    double = Records("s", ["a"], [0], ("x",), stream=Items([(np.ones((1, 4, 4)), 0)]))
    ((x, _),) = Batches(double, [0], batch_size=2).in_order()
    assert x.dtype == torch.float32


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("count", "least", "sizes"),
    [(21, 2, [10, 11]), (21, 1, [10, 10, 1]), (22, 2, [10, 10, 2]), (22, 3, [10, 12]), (1, 2, [1]), (20, 2, [10, 10])],
)
def test_a_small_last_batch_joins_the_one_before(
    make_images: Make, stream: bool, count: int, least: int, sizes: list[int]
) -> None:
    records = streamed(make_images()) if stream else make_images()
    batches = Batches(records, np.arange(count), batch_size=10, augment="flip", least=least)
    plain = Batches(make_images(), np.arange(count), batch_size=count, augment="flip")
    assert [len(y) for _, y in batches.epoch(0, 1)] == sizes
    assert len(batches) == len(sizes)
    for one, two in zip(together(batches, 0, 1), together(plain, 0, 1), strict=True):
        assert torch.equal(one, two)
