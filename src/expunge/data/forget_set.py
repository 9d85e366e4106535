"""Selection of the forget set: by ids, subjects, class, at random, by a column, or by memorisation."""

from __future__ import annotations

import bisect
import csv
import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.core.errors import RequestError, find_nearest_name, unknown_name_hint
from expunge.core.files import read_text
from expunge.core.request import ForgetRequest
from expunge.core.seeds import derive, mix
from expunge.core.split import Split, as_ids

from .records import Records

IdsOrFile = Iterable[str] | str | os.PathLike[str]


def read_ids(path: str | os.PathLike[str]) -> list[str]:
    """Read record ids from a file, in the order of the file.

    A text file has one id on each line; blank lines are skipped. A `.csv` file has either one column of ids, or a
    header with a column `record_id` (the other columns are ignored).

    Raises:
        RequestError: the file is missing, is not UTF-8 text, or is a CSV file without an identifiable column of ids.

    Example:
        >>> _ = Path("ids.csv").write_text("record_id,reason\\ndigit-0007,erasure\\ndigit-0001,erasure\\n")
        >>> read_ids("ids.csv")
        ['digit-0007', 'digit-0001']
    """
    path = Path(path)
    try:
        text = read_text(path, error=RequestError)
    except RequestError as error:
        what = error.what if os.path.lexists(path) else "no such file of record ids"
        raise RequestError(what, where=path, hint=error.hint) from error
    if path.suffix.lower() != ".csv":
        return [line.strip() for line in io.StringIO(text, newline=None) if line.strip()]
    try:
        reader = csv.reader(io.StringIO(text, newline=""))
        rows = [(number, [cell.strip() for cell in row]) for number, row in enumerate(reader, 1)]
    except csv.Error as error:
        raise RequestError(f"cannot be read as a list of record ids ({error})", where=path) from error
    rows = [(number, row) for number, row in rows if any(row)]
    column = 0
    if rows and "record_id" in rows[0][1]:
        column = rows[0][1].index("record_id")
        rows = rows[1:]
    elif any(len(row) > 1 for _, row in rows):
        raise RequestError(
            "has several columns and none is named record_id", where=path, hint="name the column of ids in line 1"
        )
    for number, row in rows:
        if len(row) <= column or not row[column]:
            raise RequestError("the line has no record id", where=f"{path}:{number}")
    return [row[column] for _, row in rows]


def forget_ids(records: Records, split: Split, ids: IdsOrFile, *, hold: IdsOrFile = ()) -> ForgetRequest:
    """Forget the named records.

    Args:
        records: the records.
        split: their split.
        ids: record ids, or the path of a file of them (`read_ids`). A single string is a path.
        hold: ids that must stay, or the path of a file of them.

    Raises:
        RequestError: an id is unknown, is not in the retain set, or is also in `hold`.

    Example:
        >>> import expunge
        >>> records = expunge.load_records("digits")
        >>> split = expunge.make_split(records, seed=0)
        >>> request = forget_ids(records, split, split.retain[:3])
        >>> len(request.record_ids), request.selection
        (3, {'by': 'ids'})
    """
    wanted, selection = _read_selected(ids)
    return _build_request(records, split, wanted, {"by": "ids", **selection}, hold=hold)


def forget_subjects(
    records: Records, split: Split, subjects: Iterable[object], *, hold: IdsOrFile = ()
) -> ForgetRequest:
    """Forget all training records of some subjects.

    Args:
        records: records with subject ids.
        split: their split.
        subjects: subject ids.
        hold: ids that must stay, or the path of a file of them.

    Raises:
        RequestError: the records have no subject ids, or a subject is unknown or has no record in the retain set.

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
    wanted = sorted({str(subject) for subject in subjects})
    known = set(np.unique(records.subject_ids).tolist())
    retained = np.isin(records.record_ids, split.retain)
    chosen = np.zeros(len(records), dtype=bool)
    for subject in wanted:
        if subject not in known:
            raise RequestError("no such subject in the data", where=subject, hint=_suggest(subject, known))
        rows = (records.subject_ids == subject) & retained
        if not rows.any():
            raise RequestError(
                "the subject has no record in the retain set: never trained on, or forgotten before", where=subject
            )
        chosen |= rows
    selection = {"by": "subjects", "subjects": wanted}
    return _build_request(records, split, records.record_ids[chosen], selection, hold=hold)


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
        index = int(which)
        if not 0 <= index < records.classes:
            hint = f"classes are numbered from 0 to {records.classes - 1}"
            raise RequestError(f"{records.name} has no class {index}", hint=hint)
    chosen = np.isin(records.record_ids, split.retain) & (records.labels == index)
    selection = {"by": "class", "index": index, "name": records.class_names[index]}
    return _build_request(records, split, records.record_ids[chosen], selection, hold=hold, forgotten_class=index)


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
    on_hold, _ = _read_selected(hold)
    pool = np.setdiff1d(split.retain, as_ids(on_hold))
    if fraction is not None:
        if not 0 <= fraction <= 1:
            raise RequestError(f"the fraction is {fraction}, not between 0 and 1", where="fraction")
        number = round(fraction * len(split.retain))
    else:
        assert count is not None
        number = int(count)
    if not 0 <= number <= len(pool):
        raise RequestError(f"{number} records cannot be drawn from {len(pool)}", where="count")
    keys = records.keys[records.rows(pool)]
    order = np.lexsort((keys, mix(keys, derive(seed, "forget"))))
    size: dict[str, Any] = {"fraction": fraction} if fraction is not None else {"count": number}
    selection = {"by": "random", **size, "seed": seed}
    return _build_request(records, split, pool[order[:number]], selection, hold=on_hold)


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
            raise RequestError(f"no record has {column} = {str(value)!r}", hint=_suggest(str(value), known))
    chosen = np.isin(records.record_ids, split.retain) & has_value
    selection = {"by": "column", "column": column, **({} if value is None else {"value": str(value)})}
    return _build_request(records, split, records.record_ids[chosen], selection, hold=hold)


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
    on_hold = set(_read_selected(hold)[0])
    retained = set(split.retain.tolist())
    wanted = [name for name in ranking if name in retained and name not in on_hold][:count]
    if len(wanted) < count:
        raise RequestError(f"the ranking has {len(wanted)} records that can be forgotten, not {count}", where="count")
    return _build_request(records, split, wanted, {"by": "memorised", "count": count, **how}, hold=hold)


def _read_selected(ids: IdsOrFile) -> tuple[list[str], dict[str, str]]:
    """Return ids, and the file they were read from as options of the selection."""
    if isinstance(ids, (str, os.PathLike)):
        return read_ids(ids), {"file": os.fspath(ids)}
    return [str(i) for i in ids], {}


def _build_request(
    records: Records,
    split: Split,
    ids: NDArray[np.str_] | list[str],
    selection: Mapping[str, Any],
    *,
    hold: IdsOrFile = (),
    forgotten_class: int | None = None,
) -> ForgetRequest:
    """Build a request after checking that its ids are records of the retain set."""
    wanted, on_hold = as_ids(ids), as_ids(_read_selected(hold)[0])
    if np.isin(wanted, on_hold).any():
        forgotten_class = None
    for group in (wanted, on_hold):
        unknown = group[~np.isin(group, records.record_ids)]
        if len(unknown):
            more = f" (and {len(unknown) - 1} more like it)" if len(unknown) > 1 else ""
            hint = _suggest(str(unknown[0]), records.record_ids.tolist())
            raise RequestError(f"no such record in {records.name}{more}", where=unknown[0], hint=hint)
    if selection["by"] != "ids":  # a rule skips records on hold; a named id on hold is an error
        wanted = wanted[~np.isin(wanted, on_hold)]
    split.move_to_forget(wanted)
    return ForgetRequest(wanted, selection=selection, forgotten_class=forgotten_class, hold=on_hold)


def _suggest(name: str, known: Iterable[str]) -> str:
    """The nearest known name among its neighbours in sorted order, and examples of known names."""
    names = sorted(known)
    at = bisect.bisect(names, name)
    close = find_nearest_name(name, names if len(names) <= 200 else names[max(0, at - 50) : at + 50])
    examples = f"they look like: {', '.join(names[:3])}"
    return examples if close is None else f"did you mean {close!r}? ({examples})"
