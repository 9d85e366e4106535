"""Selection of the forget set: by ids, subjects, class, at random, by a column, or by memorisation."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np

from expunge.core.errors import RequestError, unknown_name_hint
from expunge.core.request import ForgetRequest
from expunge.core.seeds import derive, mix
from expunge.core.split import Split, as_ids, is_in

from .reading.id_lists import RECORD_HEADERS, SUBJECT_HEADERS
from .records import Records
from .requests import (
    SKIP_PRESUMES,
    IdsOrFile,
    as_fraction,
    as_integer,
    build_request,
    check_on_missing,
    count_outside,
    describe_unknown,
    read_selected,
    skip_missing,
    suggest,
)


def forget_ids(
    records: Records, split: Split, ids: IdsOrFile, *, hold: IdsOrFile = (), on_missing: str = "refuse"
) -> ForgetRequest:
    """Forget the named records.

    Args:
        records: the records.
        split: their split.
        ids: record ids, or the path of a file of them (`read_ids`). A single string is a path.
        hold: ids that must stay, or the path of a file of them.
        on_missing: for records that are not in the retain set: `refuse` the request, or `skip` them; then the
            selection lists them under `skipped`, by reason. An id that neither the records nor the split have is an
            error with either.

    Raises:
        RequestError: an id is unknown, is not in the retain set (`refuse`), or is also in `hold`.
        ConfigError: `on_missing` is unknown.

    Example:
        >>> import expunge
        >>> records = expunge.load_records("digits")
        >>> split = expunge.make_split(records, seed=0)
        >>> request = forget_ids(records, split, split.retain[:3])
        >>> len(request.record_ids), request.selection
        (3, {'by': 'ids'})
    """
    given, selection = read_selected(ids, RECORD_HEADERS, records.record_ids)
    wanted, skipped = skip_missing(records, split, given, on_missing)
    return build_request(records, split, wanted, {"by": "ids", **selection, **skipped}, hold=hold)


def forget_subjects(
    records: Records,
    split: Split,
    subjects: Iterable[object] | os.PathLike[str],
    *,
    hold: IdsOrFile = (),
    on_missing: str = "refuse",
) -> ForgetRequest:
    """Forget all training records of some subjects.

    Records of the subjects that are not in the retain set are not forgotten; the selection counts them under `outside`,
    by part of the split.

    Args:
        records: records with subject ids.
        split: their split.
        subjects: subject ids, or the path (not a string) of a file of them, with or without the header `subject_id`.
        hold: ids that must stay, or the path of a file of them.
        on_missing: for subjects without a record in the retain set; as in `forget_ids`. An unknown subject is an error.

    Raises:
        RequestError: the records have no subject ids, or a subject is unknown or has no record in the retain set.
        ConfigError: `on_missing` is unknown.

    Example:
        >>> features = np.zeros((4, 2), dtype=np.float32)
        >>> ids = ["r0", "r1", "r2", "r3"]
        >>> names = ["ada", "bob", "ada", "eve"]
        >>> records = Records("visits", ids, [0, 1, 0, 1], ("a", "b"), features, subject_ids=names)
        >>> split = Split(retain=ids, forget=[], validation=[], test=[], non_members=[])
        >>> forget_subjects(records, split, ["ada"]).record_ids.tolist()
        ['r0', 'r2']
    """
    if isinstance(subjects, str):
        subjects = [subjects]
    if records.subject_ids is None:
        raise RequestError("records have no subject ids", where=records.name, hint="name the record ids instead")
    known = np.unique(records.subject_ids).tolist()
    given, file = read_selected(subjects, SUBJECT_HEADERS, known)
    retained = is_in(records.record_ids, split.retain)
    with_records = set(records.subject_ids[retained].tolist())
    reasons: dict[str, list[str]] = {}
    wanted = []
    for subject in sorted(set(given)):
        if subject in with_records:
            wanted.append(subject)
            continue
        if subject not in known:
            hint = describe_unknown(subject, known, given)
            raise RequestError("no such subject in the data", where=subject, hint=hint)
        reasons.setdefault("no record in the retain set", []).append(subject)
        if not check_on_missing(on_missing):
            what = "the subject has no record in the retain set: by the split, never trained on, or forgotten before"
            hint = f"on_missing: skip leaves out such subjects, and lists them: {SKIP_PRESUMES}"
            raise RequestError(what, where=subject, hint=hint)
    skipped = {"on_missing": on_missing, "skipped": reasons} if check_on_missing(on_missing) else {}
    of_wanted = np.isin(records.subject_ids, wanted)
    chosen = retained & of_wanted
    outside = count_outside(split, records.record_ids[of_wanted])
    selection = {"by": "subjects", "subjects": wanted, **file, **skipped, **({"outside": outside} if outside else {})}
    return build_request(records, split, records.record_ids[chosen], selection, hold=hold)


def forget_class(records: Records, split: Split, which: str | int, *, hold: IdsOrFile = ()) -> ForgetRequest:
    """Forget all training records of a class.

    If `hold` has records of the class, the forget set is not a whole class, and `forgotten_class` is None.

    Args:
        records: the records.
        split: their split.
        which: name (string) or index (integer) of the class.
        hold: ids that must stay, or the path of a file of them.

    Raises:
        RequestError: there is no such class.

    Example:
        >>> import expunge
        >>> records = expunge.load_records("digits")
        >>> split = expunge.make_split(records, seed=0)
        >>> request = forget_class(records, split, "3")
        >>> request.selection, request.forgotten_class
        ({'by': 'class', 'index': 3, 'name': '3'}, 3)
    """
    if isinstance(which, str):
        if which not in records.class_names:
            hint = unknown_name_hint(which, records.class_names)
            raise RequestError(f"{records.name} has no class {which!r}", hint=hint)
        index = records.class_names.index(which)
    else:
        index = as_integer(which, "index")
        if not 0 <= index < records.classes:
            hint = f"classes are numbered from 0 to {records.classes - 1}"
            raise RequestError(f"{records.name} has no class {index}", hint=hint)
    chosen = is_in(records.record_ids, split.retain) & (records.labels == index)
    selection = {"by": "class", "index": index, "name": records.class_names[index]}
    return build_request(records, split, records.record_ids[chosen], selection, hold=hold, forgotten_class=index)


def forget_random(
    records: Records,
    split: Split,
    *,
    fraction: float | None = None,
    count: int | None = None,
    seed: int = 0,
    hold: IdsOrFile = (),
) -> ForgetRequest:
    """Forget a number or a fraction of the records of the retain set, drawn at random.

    The records with the smallest hash(seed, record id) are drawn. So the draw does not depend on the order of the rows,
    and with one seed a smaller draw is a subset of a larger one.

    Args:
        records: the records.
        split: their split.
        fraction: fraction of the retain set, in [0, 1]; the number of records is rounded.
        count: number of records; give either `fraction` or `count`.
        seed: seed of the draw.
        hold: ids that must stay, or the path of a file of them; they are excluded from the draw.

    Raises:
        RequestError: both or neither of `fraction` and `count` are given, or there are too few records.

    Example:
        >>> import expunge
        >>> records = expunge.load_records("digits")
        >>> split = expunge.make_split(records, seed=0)
        >>> request = forget_random(records, split, fraction=0.05, seed=0)
        >>> len(split.retain), len(request.record_ids)
        (1150, 58)
        >>> fewer = forget_random(records, split, count=10, seed=0)
        >>> set(fewer.record_ids) <= set(request.record_ids)
        True
    """
    if (fraction is None) == (count is None):
        raise RequestError("a random forget set needs either a fraction or a count")
    on_hold, _ = read_selected(hold)
    pool = np.setdiff1d(split.retain, as_ids(on_hold))
    if fraction is not None:
        fraction = as_fraction(fraction)
        number = round(fraction * len(split.retain))
    else:
        assert count is not None
        number = as_integer(count, "count")
    if not 0 <= number <= len(pool):
        raise RequestError(f"{number} records cannot be drawn from {len(pool)}", where="count")
    keys = records.keys[records.rows(pool)]
    order = np.lexsort((keys, mix(keys, derive(seed, "forget"))))
    size: dict[str, Any] = {"fraction": fraction} if fraction is not None else {"count": number}
    selection = {"by": "random", **size, "seed": seed}
    return build_request(records, split, pool[order[:number]], selection, hold=on_hold)


def forget_column(
    records: Records, split: Split, column: str, *, value: object | None = None, hold: IdsOrFile = ()
) -> ForgetRequest:
    """Forget the training records for which a column is true, or equals `value`.

    Args:
        records: records with columns.
        split: their split.
        column: name of the column.
        value: the value, compared as a string; without it the column is boolean.
        hold: ids that must stay, or the path of a file of them.

    Raises:
        RequestError: there is no such column, it is not boolean and no value is given, or no record has the value.

    Example:
        >>> features = np.zeros((3, 2), dtype=np.float32)
        >>> withdrawn = np.asarray([False, True, True])
        >>> ids = ["r0", "r1", "r2"]
        >>> records = Records("visits", ids, [0, 1, 0], ("a", "b"), features, columns={"withdrawn": withdrawn})
        >>> split = Split(retain=ids, forget=[], validation=[], test=[], non_members=[])
        >>> forget_column(records, split, "withdrawn").record_ids.tolist()
        ['r1', 'r2']
    """
    if column not in records.columns:
        hint = unknown_name_hint(column, records.columns) if records.columns else "this source has no columns"
        raise RequestError(f"{records.name} has no column {column!r}", hint=hint)
    values = np.asarray(records.columns[column])
    if value is None:
        if values.dtype != np.bool_:
            raise RequestError(
                f"the column {column!r} is not boolean ({values.dtype})", hint="give the value to forget"
            )
        has_value = values
    else:
        has_value = values.astype(np.str_) == str(value)
        if not has_value.any():
            known = np.unique(values.astype(np.str_)).tolist()
            raise RequestError(f"no record has {column} = {str(value)!r}", hint=suggest(str(value), known))
    chosen = is_in(records.record_ids, split.retain) & has_value
    selection = {"by": "column", "column": column, **({} if value is None else {"value": str(value)})}
    return build_request(records, split, records.record_ids[chosen], selection, hold=hold)


def forget_memorised(
    records: Records, split: Split, ranking: Iterable[str], count: int, *, hold: IdsOrFile = (), **how: Any
) -> ForgetRequest:
    """Forget the first `count` retained records of a ranking, the most memorised first.

    Args:
        records: the records.
        split: their split.
        ranking: record ids, for example sorted by decreasing held-out loss
            (`expunge.training.measure_held_out_losses`).
        count: number of records.
        hold: ids that must stay, or the path of a file of them; they are skipped.
        how: options of the ranking, recorded in the request.

    Raises:
        RequestError: the ranking has too few retained records.

    Example:
        >>> import expunge
        >>> records = expunge.load_records("digits")
        >>> split = expunge.make_split(records, seed=0)
        >>> ranking = [split.test[0], *split.retain[::-1]]
        >>> request = forget_memorised(records, split, ranking, 2, models=32)
        >>> set(request.record_ids) == set(split.retain[-2:]), request.selection
        (True, {'by': 'memorised', 'count': 2, 'models': 32})
    """
    on_hold = set(read_selected(hold)[0])
    retained = set(split.retain.tolist())
    wanted = [name for name in ranking if name in retained and name not in on_hold][:count]
    if len(wanted) < count:
        raise RequestError(f"the ranking has {len(wanted)} records that can be forgotten, not {count}", where="count")
    return build_request(records, split, wanted, {"by": "memorised", "count": count, **how}, hold=hold)
