"""Read the items of a stream once before anything is trained, so that no item fails after hours of training."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from expunge.data.records import Records, seed_item_reads

#: At most so many items are read; of more, so many at equal distances. The others are checked when they are read.
MOST_ITEMS = 50_000
_AT_ONCE = 64


def check_items(records: Records, rows: NDArray[np.int64]) -> int:
    """Read the items of some rows of a stream, and check each (`Records.read_features`).

    Args:
        records: any records; those in memory were checked when they were made.
        rows: row numbers, such as those of all parts of the split.

    Returns:
        The number of items that were read, at most `MOST_ITEMS`.

    Raises:
        DataError: an item cannot be read, or does not fit the other records.

    Example:
        >>> records = Records("toy", ["a", "b"], [0, 1], ("x", "y"), stream=[(np.zeros(3), 0), (np.zeros(4), 1)])
        >>> check_items(records, np.arange(2))
        Traceback (most recent call last):
        ...
        expunge.core.errors.DataError: toy: b: has the shape (4,); the first record has (3,)
          hint: ...
    """
    if records.stream is None:
        return 0
    chosen = np.unique(rows)
    if len(chosen) > MOST_ITEMS:
        chosen = chosen[np.linspace(0, len(chosen) - 1, MOST_ITEMS).astype(np.int64)]
    with seed_item_reads():
        for start in range(0, len(chosen), _AT_ONCE):
            records.read_batch(chosen[start : start + _AT_ONCE])
    return len(chosen)
