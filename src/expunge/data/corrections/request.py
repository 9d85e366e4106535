"""Requests to correct training records: other labels, or columns that are blanked."""

from __future__ import annotations

import csv
import dataclasses
import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from expunge.core.errors import RequestError, unknown_name_hint
from expunge.core.files import read_text
from expunge.core.request import ForgetRequest
from expunge.core.show import plural
from expunge.core.split import Correction, Split
from expunge.data.reading.id_lists import RECORD_HEADERS
from expunge.data.records import Records
from expunge.data.requests import IdsOrFile, as_integer, build_request, read_selected

from .values import check_is_table, check_values, find_changed

#: Names of the column of new labels in the header of a CSV file.
LABEL_HEADERS = ("label", "new_label")


def correct_labels(
    records: Records,
    split: Split,
    labels: Mapping[str, str | int] | str | os.PathLike[str],
    *,
    hold: IdsOrFile = (),
) -> ForgetRequest:
    """Correct the labels of the named records: the model has to forget the old ones and learn the new ones.

    Args:
        records: the records.
        split: of the model; earlier corrections are in it.
        labels: new labels by record id: the name of a class (a string) or its index (an integer); or the path of a CSV
            file with the columns `record_id` and `label`. A text that is no name of a class may be its index.
        hold: ids that must not be changed, or the path of a file of them.

    Raises:
        RequestError: an id is unknown or is not in the retain set, a class does not exist, or a record has its new
            label already.

    Example:
        >>> import expunge
        >>> records = expunge.load_records("digits")
        >>> split = expunge.make_split(records, seed=0)
        >>> first = str(split.retain[0])
        >>> request = correct_labels(records, split, {first: "3"})
        >>> request.correction.labels, request.apply(split).counts() == split.counts()
        ((3,), True)
    """
    selection: dict[str, Any] = {"by": "correct"}
    if not isinstance(labels, Mapping):
        selection["file"] = os.fspath(labels)
        labels = _read_labels(Path(labels))
    if not labels:
        raise RequestError("no record is named", where=selection.get("file", "labels"))
    indices = {str(name): _find_class(records, label, str(name)) for name, label in labels.items()}
    if len(indices) < len(labels):
        raise RequestError("a record is named twice", where="labels")
    request = build_request(records, split, list(indices), selection, hold=hold)
    correction = Correction(request.record_ids, tuple(indices[name] for name in request.record_ids.tolist()))
    same = request.record_ids[~find_changed(records, split, correction)]
    if len(same):
        more = f" (and {len(same) - 1} more)" if len(same) > 1 else ""
        label = records.class_names[correction.labels[request.record_ids.tolist().index(same[0])]]
        raise RequestError(
            f"the record has the label {label!r} already{more}",
            where=same[0],
            hint="leave out the records of which the label is right",
        )
    return dataclasses.replace(request, selection={**selection, "changes": "labels"}, correction=correction)


def blank_columns(
    records: Records,
    split: Split,
    ids: IdsOrFile,
    columns: Iterable[str | int],
    *,
    fill: float = 0.0,
    hold: IdsOrFile = (),
) -> ForgetRequest:
    """Blank columns of the named records: the model has to forget the old values of these features.

    Records that have the value `fill` in all of these columns already are left out, and listed under `skipped` in the
    selection.

    Args:
        records: a table: float32 features of one dimension.
        split: of the model; earlier corrections are in it.
        ids: record ids, or the path of a file of them.
        columns: names of columns (`Records.feature_columns`; of a categorical column, all its features), or numbers of
            features.
        fill: the value of the blanked features, as the model sees them before its normalisation.
        hold: ids that must not be changed, or the path of a file of them.

    Raises:
        RequestError: an id is unknown or is not in the retain set, a column does not exist, the records are no table,
            or nothing would change.

    Example:
        >>> import expunge
        >>> records = expunge.load_records("breast-cancer")
        >>> split = expunge.make_split(records, seed=0)
        >>> request = blank_columns(records, split, split.retain[:5], [0, 20])
        >>> request.correction.blank, len(request.record_ids)
        ((0, 20), 5)
    """
    check_is_table(records)
    named, file = read_selected(ids, RECORD_HEADERS, records.record_ids)
    wanted = list(columns)
    if not wanted:
        raise RequestError("no column is named", where="blank")
    blank = sorted({index for column in wanted for index in _find_features(records, column)})
    selection: dict[str, Any] = {
        "by": "correct",
        **file,
        "changes": "columns",
        "columns": [str(column) for column in wanted],
    }
    request = build_request(records, split, named, {"by": "correct", **file}, hold=hold)
    if len(request.record_ids) == 0:
        raise RequestError("no record is named", where=file.get("file", "ids"))
    correction = Correction(request.record_ids, blank=tuple(blank), fill=fill)
    check_values(records, correction)
    changed = find_changed(records, split, correction)
    if not changed.any():
        count = plural(len(changed), "record")
        raise RequestError(
            f"the correction changes nothing: these columns are {fill:g} already in all of {count}",
            where="blank",
        )
    if not changed.all():
        selection["skipped"] = {"blank already": request.record_ids[~changed].tolist()}
        correction = Correction(request.record_ids[changed], blank=tuple(blank), fill=fill)
    return ForgetRequest(correction.record_ids, selection=selection, hold=request.hold, correction=correction)


def _find_class(records: Records, label: object, where: str) -> int:
    """The index of a class that is named, or given by its index."""
    if isinstance(label, str):
        if label in records.class_names:
            return records.class_names.index(label)
        if not label.isdecimal():
            hint = unknown_name_hint(label, records.class_names)
            raise RequestError(f"{records.name} has no class {label!r}", where=where, hint=hint)
        label = int(label)
    index = as_integer(label, where)
    if not 0 <= index < records.classes:
        raise RequestError(
            f"the new label {index} is not one of the {records.classes} classes",
            where=where,
            hint=f"classes are numbered from 0 to {records.classes - 1}, and have names: {records.class_names[0]!r}",
        )
    return index


def _find_features(records: Records, column: str | int) -> tuple[int, ...]:
    """The features of a column: those of a named one, or the one with this number."""
    if isinstance(column, str) and column in records.feature_columns:
        return tuple(records.feature_columns[column])
    if isinstance(column, str) and not column.isdecimal():
        known = list(records.feature_columns)
        hint = unknown_name_hint(column, known) if known else "this source names no columns: give numbers from 0"
        raise RequestError(f"{records.name} has no column {column!r}", where="blank", hint=hint)
    index = as_integer(int(column) if isinstance(column, str) else column, "blank")
    if not 0 <= index < records.input_shape[0]:
        hint = f"features are numbered from 0 to {records.input_shape[0] - 1}"
        raise RequestError(f"{records.name} has no feature {index}", where="blank", hint=hint)
    return (index,)


def _read_labels(path: Path) -> dict[str, str]:
    """Read new labels from a CSV file with the columns `record_id` and `label`."""
    text = read_text(path, error=RequestError)
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = next((mark for mark in ",;\t|" if mark in first), ",")
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    except csv.Error as error:
        raise RequestError(f"cannot be read as CSV ({error})", where=path) from error
    header = [name.strip().casefold() for name in rows[0]] if rows else []
    places = [next((header.index(n) for n in names if n in header), None) for names in (RECORD_HEADERS, LABEL_HEADERS)]
    if None in places:
        raise RequestError(
            "has no column record_id, or none of labels",
            where=path,
            hint="line 1 names the columns: record_id,label",
        )
    found: dict[str, str] = {}
    for number, row in enumerate(rows[1:], 2):
        if not any(cell.strip() for cell in row):
            continue
        cells = [row[place].strip() if place is not None and place < len(row) else "" for place in places]
        if not all(cells):
            raise RequestError("the line has no record id, or no label", where=f"{path}:{number}")
        if cells[0] in found:
            raise RequestError(f"the record {cells[0][:60]!r} is named twice", where=f"{path}:{number}")
        found[cells[0]] = cells[1]
    return found


def make_correction_request(records: Records, split: Split, given: Mapping[str, Any], hold: IdsOrFile) -> ForgetRequest:
    """Build the request of a selection `by: correct`, of which the keys were checked.

    Args:
        records: the records.
        split: of the model.
        given: `labels` or `file` for new labels; `blank` with `ids` or `file`, and `fill`.
        hold: ids that must not be changed.
    """
    if "blank" in given:
        ids = Path(given["file"]) if "file" in given else list(map(str, given["ids"]))
        return blank_columns(records, split, ids, given["blank"], fill=float(given.get("fill", 0.0)), hold=hold)
    labels = Path(given["file"]) if "file" in given else dict(given["labels"])
    return correct_labels(records, split, labels, hold=hold)
