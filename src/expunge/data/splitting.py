"""Drawing a split: which records train, and which are kept for selection, scores and attacks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.core.errors import ConfigError, DataError
from expunge.core.seeds import derive, mix, record_keys
from expunge.core.split import PARTS, Split

from .records import Records

_TRAIN = "retain"


def split_of(records: Records, options: Mapping[str, Any]) -> Split:
    """The split that a configuration's section `split` describes: read from its `file`, or drawn by `make_split`.

    Raises:
        DataError: the file is damaged, or names records that the source does not have.
    """
    drawn = {key: value for key, value in options.items() if key != "file"}
    path = options.get("file")
    if path is None:
        return make_split(records, **drawn)
    split = Split.load(path)
    for part in PARTS:
        records.rows(getattr(split, part))
    return split


def make_split(
    records: Records,
    *,
    seed: int = 0,
    validation: float = 0.1,
    unseen: float = 0.1,
    test: float = 0.2,
    group: str | None = None,
    stratify: bool = True,
    limit: int | None = None,
) -> Split:
    """Draw the split of an experiment; its forget set is empty.

    Where the source has an official partition, its test rows are the test set and `test` is ignored. Otherwise `test`
    is a fraction of all records. `validation` and `unseen` are fractions of the rest, the training rows.

    Which record goes where depends on hash(seed, record id) and on how many records of its class there are, never on
    the order of the rows. Each class gives each part its share, rounded up or down.

    Args:
        records: the records.
        seed: names the draw.
        validation: fraction of the training rows, in [0, 1); 0 leaves the part empty.
        unseen: likewise.
        test: fraction of all records, in [0, 1), for sources without an official partition.
        group: `subject` moves whole persons, so that nobody is in two parts; the fractions are then fractions of
            persons (at least one where the fraction is above 0), and classes are not balanced.
        stratify: share each class out alike; without it, all records are shared out as one class.
        limit: use only so many records outside the official test set, drawn like the parts; the rest is in no part.

    Raises:
        ConfigError: a fraction is out of range, or the grouping is unknown.
        DataError: records lack subject ids, there are too few persons, a person is on both sides of the official
            partition, or no training record would be left.
    """
    shares = _shares(validation, unseen, 0.0 if records.partition is not None else test)
    official = records.partition is not None
    if records.partition is None:
        is_test = np.zeros(len(records), dtype=bool)
    else:
        is_test = records.partition == "test"
        strange = ~is_test & (records.partition != "train")
        if strange.any():
            bad = int(np.flatnonzero(strange)[0])
            raise DataError(
                f"the partition says {records.partition[bad]!r}; it can say 'train' or 'test'",
                where=f"{records.name}: {records.record_ids[bad]}",
            )
    pool = _limited(records, np.flatnonzero(~is_test), limit, group, stratify, seed)
    if group is None:
        classes = records.labels[pool] if stratify else np.zeros(len(pool), dtype=np.int64)
        part_of = _share_out(records.keys[pool], classes, shares, derive(seed, "split"))
    elif group == "subject":
        part_of = _share_out_persons(records, pool, is_test, shares, seed)
    else:
        raise ConfigError(f"unknown grouping {group!r}", where="group", hint="known: subject (or none at all)")
    ids = {name: np.sort(records.record_ids[pool[part_of == name]]) for name in shares}
    if official:
        ids["test"] = np.sort(records.record_ids[is_test])
    if len(ids[_TRAIN]) == 0:
        raise DataError(f"no training record is left of {len(records)}", where=records.name, hint="ask for less")
    origin = {
        "source": records.name,
        "seed": seed,
        "validation": validation,
        "unseen": unseen,
        "test": "official" if official else test,
        "group": group,
        "stratify": bool(stratify and group is None),
        **({} if limit is None else {"limit": limit}),
    }
    return Split(
        retain=ids[_TRAIN],
        forget=np.asarray([], dtype=np.str_),
        validation=ids["validation"],
        test=ids["test"],
        unseen=ids["unseen"],
        origin=origin,
    )


def _limited(
    records: Records, pool: NDArray[np.int64], limit: int | None, group: str | None, stratify: bool, seed: int
) -> NDArray[np.int64]:
    """The rows of `pool` that are used at all."""
    if limit is None:
        return pool
    if group is not None:
        raise ConfigError("a limit draws records, not persons", where="limit", hint="leave out `limit` or `group`")
    if not 0 < limit <= len(pool):
        raise ConfigError(f"limit is {limit}; there are {len(pool)} records to draw from", where="limit")
    classes = records.labels[pool] if stratify else np.zeros(len(pool), dtype=np.int64)
    shares = {"used": limit / len(pool), "left out": 1 - limit / len(pool)}
    part_of = _share_out(records.keys[pool], classes, shares, derive(seed, "split", "limit"))
    return pool[part_of == "used"]


def _shares(validation: float, unseen: float, test: float) -> dict[str, float]:
    """The share of each part in what is drawn; they add up to 1."""
    for name, value in (("validation", validation), ("unseen", unseen), ("test", test)):
        if not 0 <= value < 1:
            raise ConfigError(f"{name} is {value}; it is a fraction of at least 0 and below 1", where=name)
    if validation + unseen >= 1:
        raise ConfigError(
            f"validation ({validation}) and unseen ({unseen}) leave no training records", hint="their sum is below 1"
        )
    rest = 1 - test
    return {
        _TRAIN: rest * (1 - validation - unseen),
        "validation": rest * validation,
        "unseen": rest * unseen,
        "test": test,
    }


def _share_out(
    keys: NDArray[np.uint64], classes: NDArray[np.int64], shares: Mapping[str, float], salt: int
) -> NDArray[np.str_]:
    """The part of each record, in hash order within its class.

    Each class is rounded to whole records by largest remainder. What a part lost (or won) by rounding in the classes
    before is added to its remainder, so that small classes do not all round the same way.
    """
    names = list(shares)
    out = np.empty(len(keys), dtype="<U10")
    owed = dict.fromkeys(names, 0.0)
    hashes = mix(keys, salt)
    for label in np.unique(classes):
        rows = np.flatnonzero(classes == label)
        rows = rows[np.lexsort((keys[rows], hashes[rows]))]
        exact = {name: _snap(shares[name] * len(rows)) for name in names}
        counts = {name: math.floor(value) for name, value in exact.items()}
        left = len(rows) - sum(counts.values())
        open_names = [name for name in names if exact[name] > counts[name]]
        open_names.sort(key=lambda name: -(exact[name] - counts[name] + owed[name]))
        for name in open_names[:left]:
            counts[name] += 1
        start = 0
        for name in names:
            owed[name] += exact[name] - counts[name]
            out[rows[start : start + counts[name]]] = name
            start += counts[name]
    return out


def _snap(value: float) -> float:
    """A whole number where floating-point arithmetic missed it by a hair."""
    return float(round(value)) if abs(value - round(value)) < 1e-9 else value


def _share_out_persons(
    records: Records, pool: NDArray[np.int64], is_test: NDArray[np.bool_], shares: Mapping[str, float], seed: int
) -> NDArray[np.str_]:
    """The part of each row of `pool`, whole persons together."""
    if records.subject_ids is None:
        raise DataError("records have no subject ids to group by", where=records.name, hint="leave out the grouping")
    both = np.intersect1d(records.subject_ids[is_test], records.subject_ids[pool])
    if len(both):
        raise DataError(
            "the person is on both sides of the official partition",
            where=f"{records.name}: {both[0]}",
            hint="leave out the grouping, or give the source no partition",
        )
    persons, who = np.unique(records.subject_ids[pool], return_inverse=True)
    keys = record_keys(persons)
    order = np.lexsort((keys, mix(keys, derive(seed, "split", "subject"))))
    part_of = np.full(len(persons), _TRAIN, dtype="<U10")
    start = 0
    for name, share in shares.items():
        if name == _TRAIN or share == 0:
            continue
        count = max(1, round(_snap(share * len(persons))))
        part_of[order[start : start + count]] = name
        start += count
    if start >= len(persons):
        raise DataError(
            f"{len(persons)} persons are too few for the parts asked for; none is left to train on",
            where=records.name,
            hint="ask for fewer or smaller parts",
        )
    return part_of[who.reshape(-1)]
