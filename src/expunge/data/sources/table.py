"""Tables: CSV files with a declared role for each column."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from expunge.core.errors import ConfigError, DataError, join_names, unknown_name_hint
from expunge.core.files import open_file
from expunge.core.reading.limits import BYTES, COLUMNS
from expunge.data.data_dir import DataDir
from expunge.data.reading.readers import make_row_ids, one_hot
from expunge.data.records import Records
from expunge.data.registry import register_source

#: Bytes of memory for a row and for a field, in addition to its text.
_ROW_COST, _FIELD_COST = 150, 75
_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no", "")


def _files(directory: DataDir, path: str | os.PathLike[str], **options: Any) -> list[Path]:
    return [directory.find_file(path)]


def read_columns(path: Path, delimiter: str = ",") -> tuple[dict[str, list[str]], list[int]]:
    """Read the columns of a CSV file with a header, as strings, and the line number of each row.

    Raises:
        DataError: the file is empty, is not UTF-8, has a duplicate column or a row of another length, or is above the
            limits.
    """
    try:
        with open_file(path, error=DataError) as opened:
            stored = os.fstat(opened.fileno()).st_size
            BYTES.check(stored, "is", where=path, error=DataError)
            rows = _read_rows(io.TextIOWrapper(opened, encoding="utf-8-sig", newline=""), delimiter, path, 2 * stored)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot be read as CSV ({error})", where=path, hint="save it as UTF-8") from error
    if not rows:
        raise DataError("is empty; it needs a header line", where=path)
    header = [name.strip() for name in rows[0][1]]
    if len(header) > COLUMNS:
        raise DataError(f"has {len(header):,} columns; at most {COLUMNS:,} are read", where=f"{path}:1")
    duplicates = sorted(name for name, count in Counter(header).items() if count > 1)
    if duplicates:
        raise DataError(f"the column {duplicates[0][:60]!r} is a duplicate", where=f"{path}:1")
    for line, row in rows[1:]:
        if len(row) != len(header):
            raise DataError(f"the row has {len(row)} fields; the header has {len(header)}", where=f"{path}:{line}")
    columns = zip(*(row for _, row in rows[1:]), strict=True) if len(rows) > 1 else [()] * len(header)
    texts = {name: [cell.strip() for cell in column] for name, column in zip(header, columns, strict=True)}
    return texts, [line for line, _ in rows[1:]]


def _read_rows(file: IO[str], delimiter: str, path: Path, used: int) -> list[tuple[int, list[str]]]:
    """Read the rows that are not empty, with their line numbers; `used` counts memory and is the initial count."""
    reader, limit = csv.reader(file, delimiter=delimiter), BYTES.value()
    rows = []
    for row in reader:
        if row:
            used += _ROW_COST + _FIELD_COST * len(row)
            if used > limit:
                where = f"{path}:{reader.line_num}"
                BYTES.check(used, "its fields up to here take", where=where, error=DataError)
            rows.append((reader.line_num, row))
    return rows


def _strings(cells: Sequence[str], where: str) -> NDArray[np.str_]:
    """Convert cells to an array, in which each takes the space of the longest."""
    BYTES.check(4 * len(cells) * max(map(len, cells), default=0), "the column takes", where=where, error=DataError)
    return np.asarray(cells, dtype=np.str_)


def _check_roles(header: Sequence[str], roles: Mapping[str, Sequence[str]], path: Path) -> None:
    """Raise ConfigError unless each column has exactly one role and each role names existing columns."""
    role_of: dict[str, str] = {}
    known = set(header)
    for role, names in roles.items():
        for name in names:
            if name not in known:
                raise ConfigError(f"{path} has no column {name!r}", where=role, hint=unknown_name_hint(name, header))
            if name in role_of:
                raise ConfigError(f"the column {name!r} is both {role_of[name]} and {role}", where=role)
            role_of[name] = role
    rest = [name for name in header if name not in role_of]
    if rest:
        raise ConfigError(
            f"no role is declared for {join_names(list(map(repr, rest)))}",
            where=path,
            hint=f"give each column one of the roles {', '.join(roles)}",
        )


def _parse(
    cells: Sequence[str], lines: Sequence[int], name: str, path: Path, parse: Callable[[str], Any], wanted: str
) -> list[Any]:
    """Parse each cell; an error names line and column."""
    out = []
    for line, cell in zip(lines, cells, strict=True):
        try:
            out.append(parse(cell))
        except (ValueError, KeyError) as error:
            hint = "fill in or drop rows with missing values first" if cell == "" else None
            what = f"{name[:100]} is {cell[:100]!r}, not {wanted}"
            raise DataError(what, where=f"{path}:{line}", hint=hint) from error
    return out


def _parse_number(cell: str) -> float:
    value = float(cell)
    if not abs(value) <= float(np.finfo(np.float32).max):  # also refuses NaN
        raise ValueError(cell)
    return value


_TRUTH = {**dict.fromkeys(_TRUE, True), **dict.fromkeys(_FALSE, False)}


def sort_names(names: set[str]) -> list[str]:
    """Sort names: by value if all are integers, else as strings."""
    if all(name.lstrip("-").isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def _one_hot(
    cells: Sequence[str], lines: Sequence[int], name: str, path: Path, known: Sequence[object] | None
) -> NDArray[np.float32]:
    names = sort_names(set(cells)) if known is None else [str(value) for value in known]
    index_of = {value: i for i, value in enumerate(names)}
    codes = _parse(cells, lines, name, path, index_of.__getitem__, f"one of {join_names(names)}")
    return one_hot(np.asarray(codes, dtype=np.int64), len(names), where=f"{path}: {name[:100]}")


@register_source("table", files=_files)
def table(
    directory: DataDir,
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
    """A CSV file with a header and a declared role for each column.

    Features are the numeric columns as float32, unchanged (the model should normalise them), then the categorical ones
    one-hot; both in the declared order.

    Args:
        directory: the data directory.
        path: the file (UTF-8), relative to the current directory or to the data directory.
        label: column of the class.
        id: column of the record id; without it ids are `row-000000`, ..., and rows may only be added at the end.
        subject: column of the subject id.
        partition: column of the official partition, `train` or `test`.
        numeric: columns of numbers.
        categorical: columns of strings; an empty cell is a separate category.
        boolean: columns of true/false (1/0, yes/no; empty is false) that can select a forget set; they are not
            features.
        ignore: columns that are not used.
        categories: the values of categorical columns, in order; the default is all values in the file, sorted.
        classes: the class names, in order; the default is all labels in the file, sorted.
        delimiter: character between fields.
    """
    file = directory.find_file(path)
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
    class_names = sort_names(set(cells[label])) if classes is None else [str(name) for name in classes]
    index = {name: i for i, name in enumerate(class_names)}
    labels = _parse(cells[label], lines, label, file, index.__getitem__, f"one of {join_names(class_names)}")
    width = len(numeric) + sum(len(set(cells[name])) for name in categorical)
    BYTES.check(8 * len(lines) * width, "its features take", where=file, error=DataError)
    blocks = [
        np.asarray(_parse(cells[name], lines, name, file, _parse_number, "a finite number"), dtype=np.float32)[:, None]
        for name in numeric
    ]
    blocks += [_one_hot(cells[name], lines, name, file, (categories or {}).get(name)) for name in categorical]
    flags = {
        name: np.asarray(
            _parse(cells[name], lines, name, file, lambda cell: _TRUTH[cell.lower()], "true or false"), dtype=bool
        )
        for name in boolean
    }
    texts = {name: _strings(cells[name], f"{file}: {name[:100]}") for name in categorical}
    return Records(
        name=file.stem,
        record_ids=_strings(cells[id], f"{file}: {id}") if id else make_row_ids(len(lines), 6, where=file),
        labels=np.asarray(labels, dtype=np.int64),
        class_names=tuple(class_names),
        features=np.concatenate(blocks, axis=1),
        subject_ids=None if subject is None else _strings(cells[subject], f"{file}: {subject}"),
        partition=None if partition is None else _strings(cells[partition], f"{file}: {partition}"),
        columns={**flags, **texts},
    )
