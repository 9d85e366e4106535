"""Tables: CSV files whose columns have declared roles."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.core.errors import ConfigError, DataError, unknown_name_hint
from expunge.data.data_dir import Place
from expunge.data.records import Records
from expunge.data.registry import register_source

_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no", "")


def _files(place: Place, path: str | os.PathLike[str], **options: Any) -> list[Path]:
    return [place.file(path)]


def read_columns(path: Path, delimiter: str = ",") -> tuple[dict[str, list[str]], list[int]]:
    """The columns of a CSV file with a header, as texts, and the line of each row.

    Raises:
        DataError: the file is empty, is not UTF-8, names a column twice, or has a row of another length.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter)
            rows = [(reader.line_num, row) for row in reader if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot be read as CSV ({error})", where=path, hint="save it as UTF-8") from error
    if not rows:
        raise DataError("is empty; a header line is wanted", where=path)
    header = [name.strip() for name in rows[0][1]]
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"names the column {twice[0]!r} twice", where=f"{path}:1")
    for line, row in rows[1:]:
        if len(row) != len(header):
            raise DataError(f"the row has {len(row)} fields; the header has {len(header)}", where=f"{path}:{line}")
    columns = zip(*(row for _, row in rows[1:]), strict=True) if len(rows) > 1 else [()] * len(header)
    texts = {name: [cell.strip() for cell in column] for name, column in zip(header, columns, strict=True)}
    return texts, [line for line, _ in rows[1:]]


def _check_roles(header: Sequence[str], roles: Mapping[str, Sequence[str]], path: Path) -> None:
    """Each column has exactly one role, and each role names columns that exist."""
    role_of: dict[str, str] = {}
    for role, names in roles.items():
        for name in names:
            if name not in header:
                raise ConfigError(f"{path} has no column {name!r}", where=role, hint=unknown_name_hint(name, header))
            if name in role_of:
                raise ConfigError(f"the column {name!r} is both {role_of[name]} and {role}", where=role)
            role_of[name] = role
    rest = [name for name in header if name not in role_of]
    if rest:
        raise ConfigError(
            f"no role is declared for {', '.join(map(repr, rest))}",
            where=path,
            hint=f"give each column one of the roles {', '.join(roles)}",
        )


def _parse(
    cells: Sequence[str], lines: Sequence[int], name: str, path: Path, parse: Callable[[str], Any], wanted: str
) -> list[Any]:
    """Each cell parsed; an error names line and column."""
    out = []
    for line, cell in zip(lines, cells, strict=True):
        try:
            out.append(parse(cell))
        except (ValueError, KeyError) as error:
            hint = "fill in or drop rows with missing values first" if cell == "" else None
            told = f"{name} is {cell!r}, and {wanted} is wanted"
            raise DataError(told, where=f"{path}:{line}", hint=hint) from error
    return out


def _number(cell: str) -> float:
    value = float(cell)
    if not abs(value) <= float(np.finfo(np.float32).max):  # also refuses NaN
        raise ValueError(cell)
    return value


_TRUTH = {**dict.fromkeys(_TRUE, True), **dict.fromkeys(_FALSE, False)}


def ordered(names: set[str]) -> list[str]:
    """Names in order: by value where all are whole numbers, else as texts."""
    if all(name.lstrip("-").isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def _one_hot(
    cells: Sequence[str], lines: Sequence[int], name: str, path: Path, known: Sequence[object] | None
) -> NDArray[np.float32]:
    names = ordered(set(cells)) if known is None else [str(value) for value in known]
    place_of = {value: i for i, value in enumerate(names)}
    codes = _parse(cells, lines, name, path, place_of.__getitem__, f"one of {', '.join(names)}")
    return np.eye(len(names), dtype=np.float32)[np.asarray(codes, dtype=np.int64)]


@register_source("table", files=_files)
def table(
    place: Place,
    path: str | os.PathLike[str],
    label: str,
    id: str | None = None,
    subject: str | None = None,
    partition: str | None = None,
    numeric: Sequence[str] = (),
    categorical: Sequence[str] = (),
    boolean: Sequence[str] = (),
    ignore: Sequence[str] = (),
    categories: Mapping[str, Sequence[object]] | None = None,
    classes: Sequence[object] | None = None,
    delimiter: str = ",",
) -> Records:
    """A CSV file with a header, each column of which has a declared role.

    Features are the numeric columns as float32, as they stand (let the model normalise them), then the categorical ones
    one-hot; both in the order declared.

    Args:
        place: the data directory.
        path: the file (UTF-8), from here or from the data directory.
        label: column of the class.
        id: column of the record id; without it ids are `row-000000`, ..., and rows may only be added at the end.
        subject: column of the person.
        partition: column of the official partition, `train` or `test`.
        numeric: columns of numbers.
        categorical: columns of texts; an empty cell is a category of its own.
        boolean: columns of true/false (1/0, yes/no; empty is false) that can select a forget set; they are no features.
        ignore: columns to leave out.
        categories: the values of categorical columns, in order; a column not named here takes all values in the file.
        classes: the class names in order; without it all labels in the file, sorted.
        delimiter: character between fields.
    """
    file = place.file(path)
    if len(delimiter) != 1:
        raise ConfigError(f"the delimiter is one character, not {delimiter!r}", where="delimiter")
    cells, lines = read_columns(file, delimiter)
    roles: dict[str, Sequence[str]] = {
        "label": [label],
        **{role: [n] for role, n in (("id", id), ("subject", subject), ("partition", partition)) if n is not None},
        "numeric": numeric,
        "categorical": categorical,
        "boolean": boolean,
        "ignore": ignore,
    }
    _check_roles(list(cells), roles, file)
    for name in categories or {}:
        if name not in categorical:
            hint = unknown_name_hint(name, categorical)
            raise ConfigError(f"{name!r} is not a categorical column", where="categories", hint=hint)
    if not numeric and not categorical:
        raise ConfigError("no column is a feature", where=file, hint="declare numeric or categorical columns")
    class_names = ordered(set(cells[label])) if classes is None else [str(name) for name in classes]
    index = {name: i for i, name in enumerate(class_names)}
    labels = _parse(cells[label], lines, label, file, index.__getitem__, f"one of {', '.join(class_names)}")
    blocks = [
        np.asarray(_parse(cells[name], lines, name, file, _number, "a finite number"), dtype=np.float32)[:, None]
        for name in numeric
    ]
    blocks += [_one_hot(cells[name], lines, name, file, (categories or {}).get(name)) for name in categorical]
    flags = {
        name: np.asarray(
            _parse(cells[name], lines, name, file, lambda cell: _TRUTH[cell.lower()], "true or false"), dtype=bool
        )
        for name in boolean
    }
    texts = {name: np.asarray(cells[name], dtype=np.str_) for name in categorical}
    return Records(
        name=file.stem,
        record_ids=np.asarray(cells[id] if id else [f"row-{i:06d}" for i in range(len(lines))], dtype=np.str_),
        labels=np.asarray(labels, dtype=np.int64),
        class_names=tuple(class_names),
        features=np.concatenate(blocks, axis=1),
        subject_ids=None if subject is None else np.asarray(cells[subject], dtype=np.str_),
        partition=None if partition is None else np.asarray(cells[partition], dtype=np.str_),
        columns={**flags, **texts},
    )
