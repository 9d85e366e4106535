"""Rows of the user's data: row numbers, boolean masks, or record ids; and the split that they make."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from expunge.core.errors import DataError, ExpungeError, RequestError, with_article
from expunge.core.split import PARTS, Ids, Split, as_ids
from expunge.data.objects.frame_index import POSITIONS, OwnIndex
from expunge.data.reading.id_lists import RECORD_HEADERS
from expunge.data.records import Records
from expunge.data.requests import describe_unknown, read_selected

#: What names records: row numbers, a mask of booleans, ids, or the path of a file of ids.
Rows = Iterable[Any] | os.PathLike[str] | str
#: Before the numbers of records that are gone and of which no id is known.
_GONE = "gone"
_WHY_NEGATIVE = "rows are counted from 0; a number that counts from the end means another record when the data grow"


def find_rows(records: Records, given: Rows, where: str, error: type[ExpungeError] = DataError) -> NDArray[np.int64]:
    """Find the rows of records that a user names.

    Args:
        records: the records.
        given: row numbers, counted from 0; a mask of `N` booleans; record ids; or the path of a file of ids. Lists,
            arrays, tensors, ranges, columns of DataFrames, and labels of the index of the DataFrame.
        where: the argument, for errors.
        error: class of the errors.

    Returns:
        Row numbers, in the given order (of a mask: ascending).

    Raises:
        ExpungeError: a number is negative, out of range, a fraction or a duplicate; the mask has another length; or an
            id is unknown.

    Example:
        >>> features = np.zeros((3, 2), dtype=np.float32)
        >>> records = Records("toy", ["r0", "r1", "r2"], [0, 1, 1], ("no", "yes"), features)
        >>> find_rows(records, [True, False, True], "train").tolist(), find_rows(records, ["r2"], "train").tolist()
        ([0, 2], [2])
    """
    if type(given).__module__.partition(".")[0] == "pandas" and hasattr(given, "get_indexer"):
        given = _read_index(records, given, where, error)
    if isinstance(given, (str, os.PathLike)):
        given = _read_file(records, given, where, error)
    values = _as_array(given, where, error)
    if values.dtype == np.bool_:
        if len(values) != len(records):
            raise error(
                f"a mask of {len(values):,} booleans for {len(records):,} records",
                where=where,
                hint="give one boolean for each row of the data, or row numbers",
            )
        return np.flatnonzero(values).astype(np.int64)
    rows = _find_ids(records, values, where, error) if values.dtype.kind == "U" else values.astype(np.int64)
    _check_range(records, rows, where, error)
    unique, counts = np.unique(rows, return_counts=True)
    if len(unique) < len(rows):
        twice = int(unique[counts > 1][0])
        raise error(
            f"{name_row(records, twice)} is named {counts.max()} times",
            where=where,
            hint="name each record once: sorted(set(rows))",
        )
    return rows


def name_row(records: Records, row: int) -> str:
    """Name a record by its row and its id, for messages."""
    return f"row {row} (id {str(records.record_ids[row])[:60]!r})"


def _read_index(records: Records, index: Any, where: str, error: type[ExpungeError]) -> Rows:
    """The labels of a pandas index as record ids or row numbers, whichever they are in the user's DataFrame."""
    own = next((caution for caution in records.cautions if isinstance(caution, OwnIndex)), None)
    if own is None:
        return cast(Rows, index)
    if not own.is_id:
        raise error("is an index of pandas, whose labels are not the numbers of the rows", where=where, hint=POSITIONS)
    return [str(label) for label in index]


def _read_file(records: Records, path: str | os.PathLike[str], where: str, error: type[ExpungeError]) -> list[str]:
    if isinstance(path, str) and path in records.record_ids:
        raise error("is a single record id, not a list", where=where, hint=f"write [{path!r}]")
    name = os.fspath(path)
    other = "" if os.path.exists(path) else _name_selection(records, name)
    if other:
        raise error(f"{name[:60]!r} is neither a record id nor a file of ids", where=where, hint=other)
    return list(read_selected(path, RECORD_HEADERS, records.record_ids)[0])


def _name_selection(records: Records, name: str) -> str:
    """The function that selects a subject or a class of this name, as a hint; empty: there is neither."""
    if records.subject_ids is not None and name in records.subject_ids:
        return f"it is a subject of the data: expunge.forget_subjects(data, model.split, [{name!r}])"
    if name in records.class_names:
        return f"it is a class of the data: expunge.forget_class(data, model.split, {name!r})"
    return ""


def _as_array(given: Any, where: str, error: type[ExpungeError]) -> NDArray[Any]:
    """The values as a one-dimensional array of booleans, integers or strings."""
    if hasattr(given, "detach") and hasattr(given, "cpu"):
        given = given.detach().cpu().numpy()
    elif hasattr(given, "to_numpy"):
        given = given.to_numpy()
    elif isinstance(given, Mapping) or not isinstance(given, Iterable):
        hint = f"write [{given}]" if isinstance(given, int) else "row numbers, booleans for all rows, or record ids"
        raise error(f"is {with_article(type(given).__name__)}, not a list of rows", where=where, hint=hint)
    items = given if isinstance(given, np.ndarray) else list(given)
    if not isinstance(items, np.ndarray) or items.dtype == object:
        _check_alike(list(items), where, error)
    try:
        values = np.asarray(items)
        values = np.asarray(values.tolist()) if values.dtype == object else values
    except (TypeError, ValueError, OverflowError) as failure:
        raise error(f"is not a list of rows ({str(failure)[:100]})", where=where) from failure
    if values.ndim != 1:
        raise error(f"is an array of shape {values.shape}, not a flat list of rows", where=where)
    if len(values) == 0:
        return np.zeros(0, dtype=np.int64)
    if values.dtype.kind in "f":
        raise error(
            f"{values[0]} is not a row number: it is a float",
            where=where,
            hint="row numbers are integers: numpy.flatnonzero(chosen), or rows.astype(int) if they are whole",
        )
    if values.dtype.kind not in "biuU":
        raise error(f"has values of type {values.dtype}, not rows", where=where)
    if values.dtype.kind == "u" and int(values.max()) >= 2**63:
        raise error(f"there is no row {int(values.max())}", where=where)
    return values


def _check_alike(items: list[Any], where: str, error: type[ExpungeError]) -> None:
    """Raise an error for a list of numbers, booleans and ids together, which numpy would convert to one type."""
    kinds: dict[str, Callable[[Any], bool]] = {
        "booleans": lambda item: isinstance(item, (bool, np.bool_)),
        "row numbers": lambda item: isinstance(item, (int, float, np.number)),
        "ids": lambda item: isinstance(item, str),
    }
    found = {next((name for name, test in kinds.items() if test(item)), type(item).__name__) for item in items}
    if len(found) > 1:
        raise error(f"has {' and '.join(sorted(found))} together", where=where, hint="give one of them")


def _find_ids(records: Records, ids: NDArray[np.str_], where: str, error: type[ExpungeError]) -> NDArray[np.int64]:
    unknown = ids[~np.isin(ids, records.record_ids)]
    if len(unknown):
        more = f" (and {len(unknown) - 1} more like it)" if len(unknown) > 1 else ""
        hint = _name_selection(records, str(unknown[0]))
        hint = hint or describe_unknown(str(unknown[0]), records.record_ids.tolist(), ids.tolist())
        raise error(f"there is no record {str(unknown[0])[:60]!r} in {records.name}{more}", where=where, hint=hint)
    return records.rows(ids.tolist())


def _check_range(records: Records, rows: NDArray[np.int64], where: str, error: type[ExpungeError]) -> None:
    if len(rows) and int(rows.min()) < 0:
        raise error(f"row {int(rows.min())} is negative", where=where, hint=_WHY_NEGATIVE)
    if len(rows) and int(rows.max()) >= len(records):
        raise error(
            f"there is no row {int(rows.max())} among {len(records):,} records",
            where=where,
            hint=f"rows are counted from 0 to {len(records) - 1}",
        )


def make_split(
    records: Records, train: Rows | None, others: Mapping[str, Rows | None], gone: Iterable[str] | int | None = None
) -> Split:
    """Make the split of a model that was trained elsewhere.

    Args:
        records: the records.
        train: the rows that it was trained on; None: all that `others` does not name.
        others: the rows of `validation`, `test` and `non_members`; None: there are none. All other rows are unused.
        gone: the ids of further records that it was trained on, which the data no longer have; or their number.

    Raises:
        DataError: a row does not exist, is in two parts, or no row is left to train on; or a record that is gone is in
            the data.

    Example:
        >>> features = np.zeros((4, 2), dtype=np.float32)
        >>> records = Records("toy", ["r0", "r1", "r2", "r3"], [0, 1, 1, 0], ("no", "yes"), features)
        >>> make_split(records, [0, 1], {"test": [3]}).counts()
        {'retain': 2, 'forget': 0, 'validation': 0, 'test': 1, 'non_members': 0}
    """
    parts = {name: find_rows(records, rows, name) for name, rows in others.items() if rows is not None}
    if train is None:
        taken = np.concatenate([np.zeros(0, dtype=np.int64), *parts.values()])
        parts["train"] = np.setdiff1d(np.arange(len(records)), taken)
    else:
        parts["train"] = find_rows(records, train, "train")
    if len(parts["train"]) == 0:
        raise DataError("the model was trained on no row", where="train", hint="name the rows that it was trained on")
    names = list(parts)
    for position, first in enumerate(names):
        for second in names[position + 1 :]:
            both = np.intersect1d(parts[first], parts[second])
            if len(both):
                more = f" (and {len(both) - 1:,} more)" if len(both) > 1 else ""
                raise DataError(
                    f"{name_row(records, int(both[0]))} is in {second} and in {first}{more}",
                    where=f"{second}, {first}",
                    hint="each record is in one part: a record that was trained on can measure nothing else",
                )
    absent = None if gone is None else _list_gone(records, gone)
    present = _get_ids(records, parts["train"])
    return Split(
        retain=present if absent is None else np.sort(np.concatenate([present, absent])),
        retain_absent=absent is not None,
        forget=as_ids(()),
        validation=_get_ids(records, parts.get("validation")),
        test=_get_ids(records, parts.get("test")),
        non_members=_get_ids(records, parts.get("non_members")),
        origin={"source": records.name, "declared": "adopt"},
    )


def _list_gone(records: Records, gone: Any) -> Ids:
    """The ids of records that are gone; made ones if only their number is known."""
    if isinstance(gone, (int, np.integer)) and not isinstance(gone, bool):
        if gone < 1:
            raise DataError(f"is {gone}", where="gone", hint="the number of training records that are gone")
        return as_ids([f"{_GONE}-{number:06d}" for number in range(gone)])
    if isinstance(gone, (str, os.PathLike)):
        gone = read_selected(gone, RECORD_HEADERS, records.record_ids)[0]
    if isinstance(gone, bool) or not isinstance(gone, Iterable):
        hint = "the ids of the training records that are gone, a file of them, or their number"
        raise DataError(f"is {with_article(type(gone).__name__)}", where="gone", hint=hint)
    ids = as_ids([str(name) for name in gone])
    there = ids[np.isin(ids, records.record_ids)]
    if len(there):
        raise DataError("is in the data, so it is not gone", where=f"gone: {there[0]}")
    if len(np.unique(ids)) < len(ids) or not len(ids):
        raise DataError("names a record twice" if len(ids) else "names no record", where="gone")
    return ids


def keep_present(records: Records, ids: Ids) -> Ids:
    """The ids of which the data have the record: all, unless some are declared to be gone."""
    return ids[np.isin(ids, records.record_ids)]


def _get_ids(records: Records, rows: NDArray[np.int64] | None) -> Ids:
    return as_ids(()) if rows is None else np.sort(records.record_ids[rows])


def find_requested(records: Records, split: Split, given: Rows, where: str = "forget") -> NDArray[np.int64]:
    """Find the rows of a request, which have to be in the retain set.

    Args:
        records: the records.
        split: of the model.
        given: see `find_rows`.
        where: the argument, for errors.

    Raises:
        RequestError: the request is empty; or a row does not exist, was forgotten before, or was never trained on.
    """
    rows = find_rows(records, given, where, RequestError)
    if len(rows) == 0:
        raise RequestError("the request names no record", where=where)
    ids = records.record_ids[rows]
    absent = np.flatnonzero(~np.isin(ids, split.retain))
    if len(absent) == 0:
        return rows
    bad = int(rows[absent[0]])
    name, more = records.record_ids[bad], f" (and {len(absent) - 1:,} more)" if len(absent) > 1 else ""
    if name in split.forget:
        what, hint = "was forgotten before", "leave it out: indices mean rows of the data, after earlier requests too"
    else:
        part = next((part for part in PARTS[2:] if name in getattr(split, part)), None)
        what = "was never trained on" + ("" if part is None else f": it is in {part}")
        hint = "only records in train can be forgotten"
    raise RequestError(f"{name_row(records, bad)} {what}{more}", where=where, hint=hint)
