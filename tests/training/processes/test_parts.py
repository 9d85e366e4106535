"""The parts of a batch are the batch: the same records, in the same order, with the same augmentation."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from expunge.core.errors import ConfigError
from expunge.data.batches import Batches, find_part
from expunge.data.records import Records


@pytest.mark.parametrize("size", [1, 2, 3, 7, 32])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_parts_cover_a_batch(size: int, count: int) -> None:
    parts = [find_part(size, number, count) for number in range(count)]
    assert [i for start, stop in parts for i in range(start, stop)] == list(range(size))
    lengths = [stop - start for start, stop in parts]
    assert max(lengths) - min(lengths) <= 1
    assert lengths[0] >= 1, "process 0 has a record in every batch"


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_parts_of_every_batch(digits: Records, streamed: bool, count: int) -> None:
    records = digits
    if streamed:
        assert digits.features is not None
        items = [(digits.features[row], int(digits.labels[row])) for row in range(len(digits))]
        records = dataclasses.replace(digits, features=None, stream=items)
    whole = Batches(records, np.arange(70, 170), batch_size=32, augment="crop-flip")  # the last batch holds 4
    parts = [dataclasses.replace(whole, part=(number, count)) for number in range(count)]
    for epoch in range(2):
        rows = zip(whole.epoch(3, epoch), *(part.epoch(3, epoch) for part in parts), strict=True)
        for number, ((x, y), *found) in enumerate(rows):
            size = whole.sizes[number]
            assert size == len(x)
            chosen = [find_part(size, part, count) for part in range(count)]
            kept = [(x[: b - a], y[: b - a]) for (a, b), (x, y) in zip(chosen, found, strict=True)]
            assert torch.equal(torch.cat([x for x, _ in kept]), x)
            assert torch.equal(torch.cat([y for _, y in kept]), y)
            for (a, b), (own, _) in zip(chosen, found, strict=True):
                if a == b:
                    assert torch.equal(own, x[:1]), "a record of the batch stands in an empty part"
    joined = [torch.cat(batch) for batch in zip(*([y for _, y in part.in_order()] for part in parts), strict=True)]
    if count < 5:
        assert [len(y) for y in joined] == whole.sizes


def test_a_part_that_does_not_exist(digits: Records) -> None:
    with pytest.raises(ConfigError, match="no part 2 among 2"):
        Batches(digits, [0], batch_size=1, part=(2, 2))
