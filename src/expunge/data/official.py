"""Putting a training part and a test part together, for sources with an official split."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from expunge.core.errors import DataError
from expunge.core.reading.limits import BYTES, RECORD_COST

PARTS = ("train", "test")


def official_ids(train: int, test: int) -> NDArray[np.str_]:
    """`train-00000`, ..., then `test-00000`, ...: the position in the official order of each part.

    Raises:
        DataError: so many records take more memory than the limit.
    """
    BYTES.check((train + test) * RECORD_COST, "the ids of the records take", where=None, error=DataError)
    return np.asarray([f"train-{i:05d}" for i in range(train)] + [f"test-{i:05d}" for i in range(test)], dtype=np.str_)


def official_partition(train: int, test: int) -> NDArray[np.str_]:
    """`train` and `test`, once a record."""
    return np.repeat(np.asarray(PARTS), [train, test])
