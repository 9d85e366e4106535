"""Draw the training records that something is planted on, and name the planted ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from expunge.core.errors import DataError, RequestError
from expunge.core.seeds import derive, mix
from expunge.core.split import Ids, Split, as_ids
from expunge.data.records import Records
from expunge.data.requests import IdsOrFile, as_fraction, as_integer, read_selected


def draw_bases(
    records: Records,
    split: Split,
    *,
    fraction: float | None,
    count: int | None,
    seed: int,
    purpose: str,
    hold: IdsOrFile = (),
) -> Ids:
    """Draw training records: those with the smallest hash(seed, purpose, record id).

    So the draw does not depend on the order of the rows, and with one seed a smaller draw is a subset of a larger one.

    Args:
        records: the records.
        split: their split; its retain set is drawn from.
        fraction: fraction of the retain set; the number of records is rounded.
        count: number of records; give either `fraction` or `count`.
        seed: seed of the draw.
        purpose: what is drawn; part of the hash.
        hold: ids that are not drawn, or the path of a file of them.

    Returns:
        Sorted record ids.

    Raises:
        RequestError: both or neither of `fraction` and `count` are given, or there are too few records.
    """
    if (fraction is None) == (count is None):
        raise RequestError(
            f"{purpose} needs either a fraction or a count", where="forget", hint="for example fraction: 0.1"
        )
    pool = np.setdiff1d(split.retain, as_ids(read_selected(hold)[0]))
    number = as_integer(count, "count") if fraction is None else round(as_fraction(fraction) * len(split.retain))
    if not 0 <= number <= len(pool):
        raise RequestError(
            f"{number} records cannot be drawn from {len(pool)}", where="count",
            hint="they are drawn from the training records that are not on hold",
        )  # fmt: skip
    keys = records.keys[records.rows(pool)]
    drawn: Ids = np.sort(pool[np.lexsort((keys, mix(keys, derive(seed, purpose))))[:number]])
    return drawn


def check_unplanted(records: Records) -> None:
    """Raise DataError if something was planted in the records already."""
    if records.planted is not None:
        raise DataError(f"the records have {records.planted.by} already", where=records.name, hint="plant one kind")


def name_planted(records: Records, bases: Ids, suffix: str) -> Ids:
    """The ids of planted records: those of their bases with a suffix.

    Raises:
        RequestError: there is a record of such a name.
        DataError: something was planted in the records already.
    """
    check_unplanted(records)
    found = as_ids([f"{base}~{suffix}" for base in bases.tolist()])
    taken = found[np.isin(found, records.record_ids)]
    if len(taken):
        raise RequestError("a planted record would have the id of another record", where=str(taken[0]))
    return found


def describe_draw(fraction: float | None, count: int | None, seed: int) -> dict[str, Any]:
    """The options of `draw_bases` that a planting records."""
    return {**({"count": count} if fraction is None else {"fraction": fraction}), "seed": seed}
