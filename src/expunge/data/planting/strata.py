"""Memorisation strata: thirds of the training records by the confidence of a model, averaged over the epochs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from expunge.core.errors import ConfigError, RequestError, unknown_name_hint
from expunge.core.request import ForgetRequest
from expunge.core.seeds import derive, mix
from expunge.core.split import Split, as_ids
from expunge.data.records import Records
from expunge.data.requests import IdsOrFile, as_fraction, as_integer, build_request, read_selected

#: From the most memorised third to the least memorised one, as in a ranking.
STRATA = ("high", "middle", "low")


def check_stratum(stratum: object) -> None:
    """Raise ConfigError unless a stratum exists."""
    if stratum not in STRATA:
        hint = unknown_name_hint(str(stratum), STRATA)
        raise ConfigError(f"unknown stratum {str(stratum)[:60]!r}", where="stratum", hint=hint)


def forget_stratum(
    records: Records,
    split: Split,
    ranking: Iterable[str],
    stratum: str,
    *,
    fraction: float | None = None,
    count: int | None = None,
    seed: int = 0,
    hold: IdsOrFile = (),
) -> ForgetRequest:
    """Forget a third of the retain set by memorisation, or records drawn from it.

    The thirds have equal numbers of records; of one or two that are left over, the first are in `high`, then `middle`.

    Args:
        records: the records.
        split: their split.
        ranking: record ids, the most memorised first: sorted by ascending confidence, averaged over the epochs of a
            training (`expunge.training.measure_training_confidences`).
        stratum: `low`, `middle` or `high` memorisation.
        fraction: draw this fraction of the retain set; without `fraction` and `count`, the whole third is forgotten.
        count: draw this number of records.
        seed: seed of the draw.
        hold: ids that must stay, or the path of a file of them; they are excluded from the draw.

    Raises:
        ConfigError: there is no such stratum.
        RequestError: both `fraction` and `count` are given, the stratum has too few records, or the ranking lacks a
            record of the retain set, or has one twice.

    Example:
        >>> import expunge
        >>> records = expunge.load_records("digits")
        >>> split = expunge.make_split(records, seed=0)
        >>> ranking = split.retain.tolist()  # as if the first were memorised most
        >>> request = forget_stratum(records, split, ranking, "low", count=2)
        >>> set(request.record_ids) <= set(split.retain[-383:]), request.selection["by"]
        (True, 'memorisation-stratum')
    """
    check_stratum(stratum)
    on_hold = as_ids(read_selected(hold)[0])
    ranked = as_ids(list(ranking))
    ranked = ranked[np.isin(ranked, split.retain)]
    missing = split.retain[~np.isin(split.retain, ranked)]
    if len(missing):
        raise RequestError("the ranking lacks a record of the retain set", where=str(missing[0]))
    values, counts = np.unique(ranked, return_counts=True)
    if len(values) < len(ranked):
        raise RequestError("the ranking has a record more than once", where=str(values[counts > 1][0]))
    third = np.array_split(ranked, len(STRATA))[STRATA.index(stratum)]
    pool = third[~np.isin(third, on_hold)]
    size: dict[str, Any] = {}
    if fraction is not None or count is not None:
        if fraction is not None and count is not None:
            raise RequestError("a stratum is drawn from by either a fraction or a count", where="count")
        number = as_integer(count, "count") if fraction is None else round(as_fraction(fraction) * len(split.retain))
        if not 0 <= number <= len(pool):
            raise RequestError(f"{number} records cannot be drawn from the {len(pool)} of the stratum", where="count")
        keys = records.keys[records.rows(pool)]
        pool = pool[np.lexsort((keys, mix(keys, derive(seed, "stratum"))))[:number]]
        size = {**({"count": count} if fraction is None else {"fraction": fraction}), "seed": seed}
    selection = {"by": "memorisation-stratum", "stratum": stratum, **size}
    return build_request(records, split, pool, selection, hold=on_hold)
