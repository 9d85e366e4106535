"""Drawing of a split: which records are trained on, and which are for selection, scores and attacks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.core.errors import ConfigError, DataError
from expunge.core.seeds import derive, mix, record_keys
from expunge.core.split import PARTS, Split

from .corrections.values import correct_records
from .planting.plant import remove_planted
from .records import Records

_TRAIN = "retain"


def load_or_make_split(records: Records, options: Mapping[str, Any]) -> Split:
    """Build the split of the section `split` of a configuration: read its `file`, or draw it with `make_split`.

    With `retain: absent`, the source need not have the records of the retain set, nor those that were forgotten.

    Raises:
        DataError: the file is damaged, or names records that the source does not have; or it declares its retain
            records absent, and the section does not.
        ConfigError: the retain records are declared absent without a file that names them.
    """
    path, absent = options.get("file"), options.get("retain") == "absent"
    if path is None:
        if absent:
            raise ConfigError(
                "absent retain records are known from a saved split only", where="split.file",
                hint="give the split.json with which the model was trained",
            )  # fmt: skip
        return make_split(records, **{key: value for key, value in options.items() if key not in ("file", "retain")})
    split = Split.load(path)
    if records.planted is not None and not np.isin(records.planted.record_ids, split.train).all():
        split = records.planted.place(split)  # the file is that of the records before the planting
    if split.retain_absent and not absent:
        raise DataError("it declares its retain records absent", where=path, hint="split.retain=absent")
    split = dataclasses.replace(split, retain_absent=absent)
    for part in PARTS:
        if absent and part in ("retain", "forget"):
            continue
        try:
            records.rows(getattr(split, part))
        except DataError as error:
            if part != "retain":
                raise
            hint = f"{error.hint}; if the retain records are gone: split.retain=absent"
            raise DataError(error.what, where=error.where, hint=hint) from error
    correct_records(records, split.corrections)  # a label or a feature that does not exist is an error here
    return split


def make_split(
    records: Records,
    *,
    seed: int = 0,
    validation: float = 0.1,
    non_members: float = 0.1,
    test: float = 0.2,
    group: str | None = None,
    stratify: bool = True,
    limit: int | None = None,
) -> Split:
    """Draw the split of an experiment; its forget set is empty.

    If the source has an official partition, its test rows are the test set and `test` is ignored. Otherwise `test` is a
    fraction of all records. `validation` and `non_members` are fractions of the other rows, the training rows.

    Planted records (`Records.planted`) are in the retain set; the other records are in the parts that they would have
    without the planting, or in none if a planted record took their place.

    The part of a record depends on hash(seed, record id) and on the number of records of its class, not on the order of
    the rows. Each class contributes its fraction to each part, rounded up or down.

    Args:
        records: the records.
        seed: seed of the draw.
        validation: fraction of the training rows, in [0, 1); with 0 the part is empty.
        non_members: fraction of the training rows for the non-member pool, in [0, 1); with 0 the part is empty.
        test: fraction of all records, in [0, 1), for sources without an official partition.
        group: `subject` keeps all records of a subject in one part. The fractions are then fractions of subjects (at
            least one subject if the fraction is above 0), and classes are not balanced.
        stratify: divide each class separately; without it, all records are divided as one class.
        limit: number of records to use outside the official test set, drawn like the parts; the rest is in no part.

    Raises:
        ConfigError: a fraction is out of range, or the grouping is unknown.
        DataError: the records have no subject ids, there are too few subjects, a subject is in both parts of the
            official partition, or no training record would be left.

    Example:
        >>> import expunge
        >>> records = expunge.load_records("digits")
        >>> split = make_split(records, seed=0, non_members=0.15)
        >>> split.counts()
        {'retain': 1078, 'forget': 0, 'validation': 144, 'test': 360, 'non_members': 215}
        >>> make_split(records, seed=0, non_members=0.15).hash == split.hash
        True
    """
    if records.planted is not None:
        options: dict[str, Any] = {"seed": seed, "validation": validation, "non_members": non_members, "test": test}
        options |= {"group": group, "stratify": stratify, "limit": limit}
        return records.planted.place(make_split(remove_planted(records), **options))
    fractions = _compute_fractions(validation, non_members, 0.0 if records.partition is not None else test)
    official = records.partition is not None
    if records.partition is None:
        is_test = np.zeros(len(records), dtype=bool)
    else:
        is_test = records.partition == "test"
        unknown = ~is_test & (records.partition != "train")
        if unknown.any():
            bad = int(np.flatnonzero(unknown)[0])
            raise DataError(
                f"the partition is {records.partition[bad]!r}, not 'train' or 'test'",
                where=f"{records.name}: {records.record_ids[bad]}",
            )
    pool = _draw_limited(records, np.flatnonzero(~is_test), limit, group, stratify, seed)
    if group is None:
        classes = records.labels[pool] if stratify else np.zeros(len(pool), dtype=np.int64)
        part_of = _assign_parts(records.keys[pool], classes, fractions, derive(seed, "split"))
    elif group == "subject":
        part_of = _assign_subjects(records, pool, is_test, fractions, seed)
    else:
        raise ConfigError(f"unknown grouping {group!r}", where="group", hint="known: subject (or no grouping)")
    ids = {name: np.sort(records.record_ids[pool[part_of == name]]) for name in fractions}
    if official:
        ids["test"] = np.sort(records.record_ids[is_test])
    if len(ids[_TRAIN]) == 0:
        raise DataError(
            f"no training record is left of {len(records)}",
            where=records.name,
            hint="lower the fractions of the other parts",
        )
    origin = {
        "source": records.name,
        "seed": seed,
        "validation": validation,
        "non_members": non_members,
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
        non_members=ids["non_members"],
        origin=origin,
    )


def _draw_limited(
    records: Records, pool: NDArray[np.int64], limit: int | None, group: str | None, stratify: bool, seed: int
) -> NDArray[np.int64]:
    """Draw the rows of `pool` that are used."""
    if limit is None:
        return pool
    if group is not None:
        raise ConfigError("a limit draws records, not subjects", where="limit", hint="leave out `limit` or `group`")
    if not 0 < limit <= len(pool):
        raise ConfigError(f"limit is {limit}; there are {len(pool)} records to draw from", where="limit")
    classes = records.labels[pool] if stratify else np.zeros(len(pool), dtype=np.int64)
    fractions = {"used": limit / len(pool), "unused": 1 - limit / len(pool)}
    part_of = _assign_parts(records.keys[pool], classes, fractions, derive(seed, "split", "limit"))
    return pool[part_of == "used"]


def _compute_fractions(validation: float, non_members: float, test: float) -> dict[str, float]:
    """The fraction of each part in the records that are drawn; the sum is 1."""
    for name, value in (("validation", validation), ("non_members", non_members), ("test", test)):
        if not 0 <= value < 1:
            raise ConfigError(f"{name} is {value}, not a fraction in [0, 1)", where=name)
    if validation + non_members >= 1:
        raise ConfigError(
            f"validation ({validation}) and non_members ({non_members}) leave no training records",
            hint="their sum must be below 1",
        )
    rest = 1 - test
    return {
        _TRAIN: rest * (1 - validation - non_members),
        "validation": rest * validation,
        "non_members": rest * non_members,
        "test": test,
    }


def _assign_parts(
    keys: NDArray[np.uint64], classes: NDArray[np.int64], fractions: Mapping[str, float], salt: int
) -> NDArray[np.str_]:
    """Assign each record to a part, in the order of hashes within its class.

    The counts of each class are rounded by largest remainder. What a part lost (or gained) by rounding in the classes
    before is added to its remainder, so that small classes do not all round the same way.
    """
    names = list(fractions)
    out = np.empty(len(keys), dtype=f"<U{max(map(len, names))}")
    carry = dict.fromkeys(names, 0.0)
    hashes = mix(keys, salt)
    for label in np.unique(classes):
        rows = np.flatnonzero(classes == label)
        rows = rows[np.lexsort((keys[rows], hashes[rows]))]
        exact = {name: _snap(fractions[name] * len(rows)) for name in names}
        counts = {name: math.floor(value) for name, value in exact.items()}
        rest = len(rows) - sum(counts.values())
        candidates = [name for name in names if exact[name] > counts[name]]
        candidates.sort(key=lambda name: -(exact[name] - counts[name] + carry[name]))
        for name in candidates[:rest]:
            counts[name] += 1
        start = 0
        for name in names:
            carry[name] += exact[name] - counts[name]
            out[rows[start : start + counts[name]]] = name
            start += counts[name]
    return out


def _snap(value: float) -> float:
    """Round to an integer if only floating-point error separates the value from it."""
    return float(round(value)) if abs(value - round(value)) < 1e-9 else value


def _assign_subjects(
    records: Records, pool: NDArray[np.int64], is_test: NDArray[np.bool_], fractions: Mapping[str, float], seed: int
) -> NDArray[np.str_]:
    """Assign each row of `pool` to a part; all rows of a subject are in one part."""
    if records.subject_ids is None:
        raise DataError("records have no subject ids to group by", where=records.name, hint="leave out the grouping")
    both = np.intersect1d(records.subject_ids[is_test], records.subject_ids[pool])
    if len(both):
        raise DataError(
            "the subject is in both parts of the official partition",
            where=f"{records.name}: {both[0]}",
            hint="leave out the grouping, or use the source without a partition",
        )
    subjects, subject_of = np.unique(records.subject_ids[pool], return_inverse=True)
    keys = record_keys(subjects)
    order = np.lexsort((keys, mix(keys, derive(seed, "split", "subject"))))
    part_of = np.full(len(subjects), _TRAIN, dtype=f"<U{max(map(len, fractions))}")
    start = 0
    for name, fraction in fractions.items():
        if name == _TRAIN or fraction == 0:
            continue
        count = max(1, round(_snap(fraction * len(subjects))))
        part_of[order[start : start + count]] = name
        start += count
    if start >= len(subjects):
        raise DataError(
            f"{len(subjects)} subjects are too few for these parts; none is left to train on",
            where=records.name,
            hint="use fewer or smaller parts",
        )
    return part_of[subject_of.reshape(-1)]
