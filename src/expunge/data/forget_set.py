"""Choosing the forget set: by ids, persons, class, at random, or by a column."""

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

from expunge.core.errors import ConfigError, RequestError, nearest, unknown_name_hint
from expunge.core.files import read_text
from expunge.core.request import ForgetRequest
from expunge.core.seeds import derive, mix
from expunge.core.split import Split, as_ids

from .records import Records

IdsOrFile = Iterable[str] | str | os.PathLike[str]


def read_ids(path: str | os.PathLike[str]) -> list[str]:
    """Record ids from a file, in the order of the file.

    A text file holds one id a line; blank lines are skipped. A `.csv` file holds either one column of ids, or a header
    with a column `record_id` (the other columns are ignored).

    Raises:
        RequestError: the file is missing, is not text, or is a CSV file in which the ids cannot be told.
    """
    path = Path(path)
    try:
        text = read_text(path, error=RequestError)
    except RequestError as error:
        what = "no such file of record ids" if error.what == "no such file" else error.what
        raise RequestError(what, where=path, hint=error.hint) from error
    if path.suffix.lower() != ".csv":
        return [line.strip() for line in io.StringIO(text, newline=None) if line.strip()]
    try:
        found = csv.reader(io.StringIO(text, newline=""))
        rows = [(number, [cell.strip() for cell in row]) for number, row in enumerate(found, 1)]
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


def forget_ids(records: Records, split: Split, ids: IdsOrFile, *, keep: IdsOrFile = ()) -> ForgetRequest:
    """Forget the named records.

    Args:
        records: the records.
        split: the split they are in.
        ids: record ids, or the path of a file of them (`read_ids`). A text alone is a path.
        keep: ids that must stay; an id in both is an error.

    Raises:
        RequestError: an id is unknown, or is not in the retain set.
    """
    wanted, selection = _ids(ids)
    return _request(records, split, wanted, {"kind": "ids", **selection}, keep=keep)


def forget_subjects(
    records: Records, split: Split, subjects: Iterable[object], *, keep: IdsOrFile = ()
) -> ForgetRequest:
    """Forget all training records of some persons.

    Raises:
        RequestError: the records have no subject ids, or a person is unknown or has no record in the retain set.
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
            raise RequestError("no such person in the data", where=subject, hint=_some(subject, known))
        rows = (records.subject_ids == subject) & retained
        if not rows.any():
            raise RequestError(
                "the person has no record in the retain set: never trained on, or forgotten before", where=subject
            )
        chosen |= rows
    return _request(records, split, records.record_ids[chosen], {"kind": "subjects", "subjects": wanted}, keep=keep)


def forget_class(records: Records, split: Split, which: str | int, *, keep: IdsOrFile = ()) -> ForgetRequest:
    """Forget all training records of a class, given by name (text) or index (number).

    Where some of them must be kept, the forget set is not a whole class, and `forgotten_class` stays empty.

    Raises:
        RequestError: there is no such class.
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
    selection = {"kind": "class", "index": index, "name": records.class_names[index]}
    return _request(records, split, records.record_ids[chosen], selection, keep=keep, forgotten_class=index)


def forget_random(
    records: Records,
    split: Split,
    *,
    fraction: float | None = None,
    count: int | None = None,
    seed: int = 0,
    keep: IdsOrFile = (),
) -> ForgetRequest:
    """Forget a number, or a fraction, of the retain set, drawn at random.

    The records with the smallest hash(seed, record id) are taken. So the draw does not depend on the order of the rows,
    and a smaller draw of the same seed is contained in a larger one.

    Args:
        records: the records.
        split: the split they are in.
        fraction: of the retain set, in [0, 1]; rounded to whole records.
        count: number of records; exactly one of the two is given.
        seed: names the draw.
        keep: ids that must stay; they are left out of the draw.

    Raises:
        RequestError: both or neither are given, or more is asked for than there is.
    """
    if (fraction is None) == (count is None):
        raise RequestError("a random forget set needs either a fraction or a count")
    keep_ids, _ = _ids(keep)
    pool = np.setdiff1d(split.retain, as_ids(keep_ids))
    if fraction is not None:
        if not 0 <= fraction <= 1:
            raise RequestError(f"the fraction is {fraction}; it lies between 0 and 1", where="fraction")
        number = round(fraction * len(split.retain))
    else:
        assert count is not None
        number = int(count)
    if not 0 <= number <= len(pool):
        raise RequestError(f"{number} records cannot be drawn from {len(pool)}", where="count")
    keys = records.keys[records.rows(pool)]
    order = np.lexsort((keys, mix(keys, derive(seed, "forget"))))
    size: dict[str, Any] = {"fraction": fraction} if fraction is not None else {"count": number}
    return _request(records, split, pool[order[:number]], {"kind": "random", **size, "seed": seed}, keep=keep_ids)


def forget_column(
    records: Records, split: Split, column: str, *, value: object | None = None, keep: IdsOrFile = ()
) -> ForgetRequest:
    """Forget the training records for which a column is true, or equals `value`.

    Raises:
        RequestError: there is no such column, it is not boolean and no value is given, or it never has the value.
    """
    if column not in records.columns:
        hint = unknown_name_hint(column, records.columns) if records.columns else "this source has no columns"
        raise RequestError(f"{records.name} has no column {column!r}", hint=hint)
    values = np.asarray(records.columns[column])
    if value is None:
        if values.dtype != np.bool_:
            raise RequestError(
                f"the column {column!r} is not boolean ({values.dtype})", hint="say which value is to be forgotten"
            )
        hit = values
    else:
        hit = values.astype(np.str_) == str(value)
        if not hit.any():
            known = np.unique(values.astype(np.str_)).tolist()
            raise RequestError(f"no record has {column} = {str(value)!r}", hint=_some(str(value), known))
    chosen = np.isin(records.record_ids, split.retain) & hit
    selection = {"kind": "column", "column": column, **({} if value is None else {"value": str(value)})}
    return _request(records, split, records.record_ids[chosen], selection, keep=keep)


def forget_memorised(
    records: Records, split: Split, ranking: Iterable[str], count: int, *, keep: IdsOrFile = (), **how: Any
) -> ForgetRequest:
    """Forget the first `count` retained records of a ranking, the most memorised first.

    Args:
        records: the records.
        split: the split they are in.
        ranking: record ids, as `records.record_ids[losses.largest_first()]` (`measure_held_out_losses`).
        count: how many.
        keep: ids that must stay; they are passed over.
        how: how the ranking was made, for the request.

    Raises:
        RequestError: the ranking has too few retained records.
    """
    kept = set(_ids(keep)[0])
    retained = set(split.retain.tolist())
    wanted = [name for name in ranking if name in retained and name not in kept][:count]
    if len(wanted) < count:
        raise RequestError(f"the ranking has {len(wanted)} records that can be forgotten, not {count}", where="count")
    return _request(records, split, wanted, {"kind": "memorised", "count": count, **how}, keep=keep)


_KINDS: dict[str, tuple[str, ...]] = {
    "ids": ("ids", "file"),
    "subjects": ("subjects",),
    "class": ("name", "index"),
    "random": ("fraction", "count", "seed"),
    "column": ("column", "value"),
    "memorised": ("count", "models", "seed"),
}


def check_selection(selection: Mapping[str, Any]) -> None:
    """Check the kind and the keys of a selection, before there are records; see `select_forget`.

    Raises:
        ConfigError: the kind or a key is unknown, or what the kind needs is missing.
    """
    kind = str(selection.get("kind", ""))
    if kind not in _KINDS:
        raise ConfigError(f"unknown kind of forget set {kind!r}", where="kind", hint=unknown_name_hint(kind, _KINDS))
    given = {key: value for key, value in selection.items() if value is not None and key not in ("kind", "keep")}
    for key in given:
        if key not in _KINDS[kind]:
            hint = unknown_name_hint(key, [*_KINDS[kind], "keep"])
            raise ConfigError(f"a forget set of kind {kind!r} has no key {key!r}", where=key, hint=hint)
    needed = {"column": ("column",), "random": ("fraction", "count"), "memorised": ("count",)}.get(kind, _KINDS[kind])
    _one_of(kind, given, needed)


def select_forget(records: Records, split: Split, selection: Mapping[str, Any]) -> ForgetRequest:
    """The forget request that a selection (from a configuration) describes.

    The kinds and their keys:

    - `ids`: `ids` (a list) or `file` (a path);
    - `subjects`: `subjects` (a list);
    - `class`: `name` (text) or `index` (number);
    - `random`: `fraction` or `count`, and `seed` (0 without it);
    - `column`: `column` (its name) and `value` (without it the column is boolean);
    - `memorised`: `count`, and `models` and `seed` of the ensemble that ranks the records. Runs and plans
      train it (`expunge.training.ensemble.memorised`); without one, this function refuses: see `forget_memorised`.

    Each may have `keep`: a list of ids that must stay, or the path of a file of them.

    Raises:
        ConfigError: the kind or a key is unknown, or what the kind needs is missing.
        RequestError: the records cannot be forgotten.
    """
    check_selection(selection)
    given = {key: value for key, value in selection.items() if value is not None and key not in ("kind", "keep")}
    kind, keep = str(selection["kind"]), selection.get("keep") or ()
    try:
        return _select(records, split, kind, given, keep)
    except (TypeError, ValueError) as error:  # a text where a number belongs, and the like
        raise ConfigError(
            f"a forget set of kind {kind!r} cannot be made of {given} ({error})", where="forget"
        ) from error


def _select(records: Records, split: Split, kind: str, given: dict[str, Any], keep: IdsOrFile) -> ForgetRequest:
    if kind == "random":
        return forget_random(records, split, keep=keep, **given)
    if kind == "memorised":
        raise ConfigError(
            "which records are memorised is known only after an ensemble was trained",
            where="forget.kind",
            hint="pass the ranking of training.memorised.measure_held_out_losses to forget_memorised",
        )
    if kind == "column":
        _one_of(kind, given, ("column",))
        return forget_column(records, split, given["column"], value=given.get("value"), keep=keep)
    value = given[_one_of(kind, given, _KINDS[kind])]
    if kind == "subjects":
        return forget_subjects(records, split, value, keep=keep)
    if kind == "class":
        return forget_class(records, split, str(value) if "name" in given else int(value), keep=keep)
    if "file" in given:
        return forget_ids(records, split, Path(value), keep=keep)
    return forget_ids(records, split, [value] if isinstance(value, str) else map(str, value), keep=keep)


def _one_of(kind: str, given: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    """The one key of `keys` that is given."""
    found = [key for key in keys if key in given]
    if len(found) != 1:
        raise ConfigError(f"a forget set of kind {kind!r} needs {' or '.join(keys)}", where="forget")
    return found[0]


def _ids(ids: IdsOrFile) -> tuple[list[str], dict[str, str]]:
    """Ids, and where they came from."""
    if isinstance(ids, (str, os.PathLike)):
        return read_ids(ids), {"file": os.fspath(ids)}
    return [str(i) for i in ids], {}


def _request(
    records: Records,
    split: Split,
    ids: NDArray[np.str_] | list[str],
    selection: Mapping[str, Any],
    *,
    keep: IdsOrFile = (),
    forgotten_class: int | None = None,
) -> ForgetRequest:
    """A request whose ids all are records of the retain set."""
    wanted, kept = as_ids(ids), as_ids(_ids(keep)[0])
    if np.isin(wanted, kept).any():
        forgotten_class = None
    for group in (wanted, kept):
        unknown = group[~np.isin(group, records.record_ids)]
        if len(unknown):
            more = f" (and {len(unknown) - 1} more like it)" if len(unknown) > 1 else ""
            hint = _some(str(unknown[0]), records.record_ids.tolist())
            raise RequestError(f"no such record in {records.name}{more}", where=unknown[0], hint=hint)
    if selection["kind"] != "ids":  # a selection by a rule gives way to what must be kept; named ids do not
        wanted = wanted[~np.isin(wanted, kept)]
    split.forgetting(wanted)
    return ForgetRequest(wanted, selection=selection, forgotten_class=forgotten_class, keep=kept)


def _some(name: str, known: Iterable[str]) -> str:
    """The nearest known name among its neighbours in sorted order, and a few examples."""
    names = sorted(known)
    at = bisect.bisect(names, name)
    close = nearest(name, names if len(names) <= 200 else names[max(0, at - 50) : at + 50])
    examples = f"they look like: {', '.join(names[:3])}"
    return examples if close is None else f"did you mean {close!r}? ({examples})"
