"""The index of a pandas DataFrame: whether its labels are row numbers, record ids, or neither."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from expunge.data.items import Caution

#: What to do about an index that names no record here.
POSITIONS = "frame.index.get_indexer(labels) gives the row numbers of labels; or give a mask"


@dataclasses.dataclass(frozen=True)
class OwnIndex(Caution):
    """The DataFrame has an index of its own, whose labels are not the numbers of its rows.

    Attributes:
        is_id: the labels are the record ids.
    """

    is_id: bool = False


def read_index(frame: Any, *, with_ids: bool) -> tuple[list[str] | None, OwnIndex | None]:
    """The labels of an index as record ids, and what has to be said about it.

    Args:
        frame: a pandas DataFrame.
        with_ids: the caller gives ids.

    Returns:
        The ids, if none were given and the labels can be ids: strings or integers, without repetition; and the caution,
        unless the labels are the row numbers 0, 1, ....
    """
    index = frame.index
    if getattr(index, "nlevels", 1) == 1 and np.array_equal(np.asarray(index, dtype=object), np.arange(len(frame))):
        return None, None
    labels = [] if getattr(index, "nlevels", 1) > 1 else index.tolist()
    simple = all(isinstance(label, (str, int, np.integer)) and not isinstance(label, bool) for label in labels)
    ids = [str(label) for label in labels]
    count = "rows are counted from 0 in the order of the DataFrame, whatever its index"
    if with_ids or not simple or len(set(ids)) < len(frame):
        return None, OwnIndex("the index of the DataFrame is not used", f"{count}; {POSITIONS}")
    hint = f"{count}; frame.index[...] and strings name records by their labels"
    return ids, OwnIndex("the labels of the DataFrame's index are the record ids", hint, is_id=True)
