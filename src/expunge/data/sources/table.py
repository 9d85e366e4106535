"""Tables: CSV files with a declared role for each column."""

from __future__ import annotations

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from expunge.core.errors import ConfigError, DataError, join_names
from expunge.core.files import open_file
from expunge.core.reading.limits import BYTES, COLUMNS
from expunge.data.data_dir import DataDir
from expunge.data.items import BLANKS
from expunge.data.reading.readers import make_row_ids, one_hot
from expunge.data.records import Records
from expunge.data.registry import register_source
from expunge.data.tables.roles import Roles, check_categories, check_listed_once, sort_names
from expunge.data.tables.tokens import list_tokenizer_files, load_tokenizer, tokenize

#: Bytes of memory for a row and for a field, in addition to its text.
_ROW_COST, _FIELD_COST = 150, 75
_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no")
#: Other names for a delimiter that a configuration cannot always spell.
_DELIMITERS = {"tab": "\t", "\\t": "\t"}
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)


def _files(
    directory: DataDir, path: str | os.PathLike[str], tokenizer: str | None = None, **options: Any
) -> list[Path]:
    found = [directory.find_file(path)]
    return found if tokenizer is None else [*found, *list_tokenizer_files(directory.find_directory(tokenizer))]


def read_columns(path: Path, delimiter: str = ",") -> tuple[dict[str, list[str]], list[int]]:
    """Read the columns of a CSV file with a header, as strings, and the line number of each row.

    Raises:
        ConfigError: the file has another delimiter.
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
    if len(header) == 1 and any(mark in header[0] for mark in ";\t|"):
        mark = next(mark for mark in ";\t|" if mark in header[0])
        name = "tab" if mark == "\t" else mark
        raise ConfigError(
            f"the header is one column, {header[0][:100]!r}",
            where=f"{path}:1",
            hint=f"set the option delimiter: {name!r}",
        )
    for line, row in rows[1:]:
        check_row(row, header, path, line)
    columns = zip(*(row for _, row in rows[1:]), strict=True) if len(rows) > 1 else [()] * len(header)
    texts = {name: [cell.strip() for cell in column] for name, column in zip(header, columns, strict=True)}
    return texts, [line for line, _ in rows[1:]]


def check_row(row: Sequence[str], header: Sequence[str], path: Path, line: int) -> None:
    """Raise DataError if a row has not as many fields as the header.

    Args:
        row: its fields.
        header: the names of the columns.
        path: the file.
        line: the line.
    """
    if len(row) != len(header):
        raise DataError(f"the row has {len(row)} fields; the header has {len(header)}", where=f"{path}:{line}")


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


def _parse(
    cells: Sequence[str],
    lines: Sequence[int],
    name: str,
    path: Path,
    parse: Callable[[str], Any],
    wanted: str,
    hint_of: Callable[[str], str | None] = lambda cell: None,
) -> list[Any]:
    """Parse each cell; an error names line and column, with the hint for the cell."""
    out = []
    for line, cell in zip(lines, cells, strict=True):
        try:
            out.append(parse(cell))
        except (ValueError, KeyError) as error:
            hint = "fill in or drop rows with missing values first" if cell == "" else hint_of(cell)
            what = f"{name[:100]} is {cell[:100]!r}, not {wanted}"
            raise DataError(what, where=f"{path}:{line}", hint=hint) from error
    return out


def _number_parser(decimal: str) -> Callable[[str], float]:
    """Return the function that parses a number with this decimal mark; no other mark may separate digits."""

    def parse(cell: str) -> float:
        text = cell if decimal == "." else cell.replace(".", "_").replace(decimal, ".")
        if _NUMBER.fullmatch(text) is None or abs(float(text)) > float(np.finfo(np.float32).max):
            raise ValueError(cell)
        return float(text)

    return parse


def _hint_decimal(cell: str, decimal: str) -> str | None:
    """The hint for a number with another decimal mark, or with marks between thousands."""
    other = "," if decimal == "." else "."
    if other not in cell:
        return None
    return f"if {other!r} is the decimal mark, set decimal: {other!r}; remove marks between thousands"


def _check_filled(cells: Sequence[str], lines: Sequence[int], name: str, path: Path, role: str) -> None:
    """Raise DataError for a blank cell of a role in which several blank cells would count as one value."""
    blank = [line for line, cell in zip(lines, cells, strict=True) if not cell.strip(BLANKS)]
    if blank:
        more = f" (and in {len(blank) - 1} more rows)" if len(blank) > 1 else ""
        raise DataError(
            f"the {role} {name[:100]!r} is blank{more}", where=f"{path}:{blank[0]}", hint="fill it in, or drop the row"
        )


_TRUTH = {**dict.fromkeys(_TRUE, True), **dict.fromkeys(_FALSE, False)}


def _one_hot(
    cells: Sequence[str], lines: Sequence[int], name: str, path: Path, known: Sequence[object] | None
) -> NDArray[np.float32]:
    names = sort_names(set(cells)) if known is None else check_listed_once(known, f"categories: {name}")
    index_of = {value: i for i, value in enumerate(names)}
    codes = _parse(cells, lines, name, path, index_of.__getitem__, f"one of {join_names(names)}")
    return one_hot(np.asarray(codes, dtype=np.int64), len(names), where=f"{path}: {name[:100]}")


def _read_features(
    cells: Mapping[str, Sequence[str]],
    lines: Sequence[int],
    roles: Roles,
    file: Path,
    categories: Mapping[str, Sequence[object]] | None,
    decimal: str,
) -> tuple[NDArray[np.float32], dict[str, range]]:
    """The numeric columns, then the categorical ones one-hot; and the features of each column."""
    numeric, categorical = roles.numeric, roles.categorical
    width = len(numeric) + sum(len(set(cells[name])) for name in categorical)
    BYTES.check(8 * len(lines) * width, "its features take", where=file, error=DataError)
    parse_number = _number_parser(decimal)
    blocks = [
        np.asarray(
            _parse(
                cells[name],
                lines,
                name,
                file,
                parse_number,
                f"a finite number with the decimal mark {decimal!r}",
                lambda cell: _hint_decimal(cell, decimal),
            ),
            dtype=np.float32,
        )[:, None]
        for name in numeric
    ]
    blocks += [_one_hot(cells[name], lines, name, file, (categories or {}).get(name)) for name in categorical]
    widths = [block.shape[1] for block in blocks]
    starts = np.cumsum([0, *widths]).tolist()
    places = zip([*numeric, *categorical], starts, widths, strict=False)
    named = {name: range(start, start + width) for name, start, width in places}
    return np.concatenate(blocks, axis=1), named


@register_source("table", files=_files, reads="a CSV file")
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
    decimal: str = ".",
    text: Sequence[str] = (),
    select: Sequence[str] = (),
    tokenizer: str | None = None,
    max_length: int | None = None,
) -> Records:
    """A custom CSV file with a header and a declared role for each column; partition and subjects as declared.

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
        boolean: columns of true/false (1/0, yes/no) that can select a forget set; they are not features.
        ignore: columns that are not used.
        categories: the values of categorical columns, in order; the default is all values in the file, sorted.
        classes: the class names, in order; the default is all labels in the file, sorted.
        delimiter: character between fields, such as `;`; `tab` is a tab.
        decimal: the decimal mark of numbers, `.` or `,`. No mark separates thousands.
        text: a column of text, or two that are read as a pair, for `tokenizer`; then there are no other features.
        select: columns of strings that can select a forget set; they are not features.
        tokenizer: folder of a Hugging Face tokenizer, for `text`.
        max_length: most tokens of a text; longer ones are cut. The default is the limit of the tokenizer.

    Cells of the label, of booleans, and of ids, subjects and the partition must not be blank.
    """
    file = directory.find_file(path)
    delimiter = _DELIMITERS.get(delimiter, delimiter)
    if len(delimiter) != 1 or delimiter in '\r\n"':
        raise ConfigError(f"the delimiter is one character, not {delimiter!r}", where="delimiter")
    if decimal not in (".", ","):
        raise ConfigError(f"the decimal mark is '.' or ',', not {decimal!r}", where="decimal")
    if decimal == delimiter:
        raise ConfigError(
            f"{decimal!r} is the delimiter and the decimal mark", where="decimal", hint="such as delimiter: ';'"
        )
    cells, lines = read_columns(file, delimiter)
    roles = Roles(label, id, subject, partition, numeric, categorical, text, boolean, select, ignore)
    roles.check(list(cells), file)
    check_categories(categories, categorical)
    if bool(roles.text) != (tokenizer is not None):
        raise ConfigError("text needs a tokenizer, and a tokenizer needs a column of text", where=file)
    if not lines:
        raise DataError("has a header and no rows", where=file)
    for role, column in [*roles.single.items(), *(("boolean column", name) for name in roles.boolean)]:
        _check_filled(cells[column], lines, column, file, role)
    class_names = sort_names(set(cells[label])) if classes is None else check_listed_once(classes, "classes")
    index = {name: i for i, name in enumerate(class_names)}
    labels = _parse(cells[label], lines, label, file, index.__getitem__, f"one of {join_names(class_names)}")
    features: NDArray[Any]
    places: dict[str, range] = {}
    more: dict[str, Any] = {}
    if not roles.text:
        features, places = _read_features(cells, lines, roles, file, categories, decimal)
    else:
        assert tokenizer is not None
        parts = [[cells[name] for name in roles.text]]
        tokens = tokenize(load_tokenizer(directory.find_directory(tokenizer)), parts, max_length, file)
        features, more = tokens.pack(), {"fields": tokens.fields, "cautions": tokens.cautions}
    flags = {
        name: np.asarray(
            _parse(cells[name], lines, name, file, lambda cell: _TRUTH[cell.lower()], "true or false"), dtype=bool
        )
        for name in roles.boolean
    }
    texts = {name: _strings(cells[name], f"{file}: {name[:100]}") for name in (*roles.categorical, *roles.select)}
    return Records(
        name=file.stem,
        record_ids=_strings(cells[id], f"{file}: {id}") if id else make_row_ids(len(lines), 6, where=file),
        labels=np.asarray(labels, dtype=np.int64),
        class_names=tuple(class_names),
        features=features,
        subject_ids=None if subject is None else _strings(cells[subject], f"{file}: {subject}"),
        partition=None if partition is None else _strings(cells[partition], f"{file}: {partition}"),
        columns={**flags, **texts},
        feature_columns=places,
        **more,
    )
