"""Lists of ids in text and CSV files."""

from __future__ import annotations

import csv
import dataclasses
import io
import os
from collections.abc import Sequence
from pathlib import Path

from expunge.core.errors import RequestError
from expunge.core.files import read_text
from expunge.core.show import repr_fields

#: Names of the column of ids in the header of a CSV file, the first that is found is read.
RECORD_HEADERS = ("record_id", "id", "record_ids", "ids")
SUBJECT_HEADERS = (
    "subject_id", "subject", "subject_ids", "subjects", "patient_id", "patient", "person_id", "person", "user_id",
    "user", "id", "ids",
)  # fmt: skip
_DELIMITERS = (",", ";", "\t", "|")


@dataclasses.dataclass(frozen=True)
class IdList:
    """Ids from a file.

    Attributes:
        ids: in the order of the file.
        header: the name of the column of ids, as line 1 has it, if that is the only column; else None.
    """

    ids: tuple[str, ...]
    header: str | None = None

    __repr__ = repr_fields


def read_ids(path: str | os.PathLike[str], headers: Sequence[str] = RECORD_HEADERS) -> list[str]:
    """Read ids from a file, in the order of the file.

    A text file has one id on each line; blank lines are skipped. A `.csv` or `.tsv` file has either one column of ids,
    with or without a header, or several columns with a header. The column of ids is named `record_id` or `id`; the
    other columns are ignored. The delimiter is a comma, or the semicolon, tab or bar by which the header is divided.

    Args:
        path: the file.
        headers: names of the column of ids; case does not matter.

    Raises:
        RequestError: the file is missing, is not UTF-8 text, or is a CSV file without an identifiable column of ids.

    Example:
        >>> _ = Path("ids.csv").write_text("record_id,reason\\ndigit-0007,erasure\\ndigit-0001,erasure\\n")
        >>> read_ids("ids.csv")
        ['digit-0007', 'digit-0001']
    """
    return list(read_id_list(path, headers).ids)


def read_id_list(path: str | os.PathLike[str], headers: Sequence[str] = RECORD_HEADERS) -> IdList:
    """Read ids and the header from a file; see `read_ids`."""
    path = Path(path)
    try:
        text = read_text(path, error=RequestError)
    except RequestError as error:
        named = "subjects" if headers is SUBJECT_HEADERS else "record ids"
        what = error.what if os.path.lexists(path) else f"no such file of {named}"
        raise RequestError(what, where=path, hint=error.hint) from error
    if path.suffix.lower() not in (".csv", ".tsv"):
        return IdList(tuple(line.strip() for line in io.StringIO(text, newline=None) if line.strip()))
    delimiter = _find_delimiter(text, headers)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        rows = [(number, [cell.strip() for cell in row]) for number, row in enumerate(reader, 1)]
    except csv.Error as error:
        raise RequestError(f"cannot be read as a list of ids ({error})", where=path) from error
    rows = [(number, row) for number, row in rows if any(row)]
    if not rows:
        return IdList(())
    column, header = _find_column(rows[0][1], headers), None
    if column is not None:
        header = rows[0][1][0] if len(rows[0][1]) == 1 else None
        rows = rows[1:]
    elif any(len(row) > 1 for _, row in rows):
        raise RequestError(
            f"has several columns and none is named {headers[0]} or {headers[1]}",
            where=path,
            hint="name the column of ids in line 1",
        )
    at = column or 0
    for number, row in rows:
        if len(row) <= at or not row[at]:
            what = "subject" if headers is SUBJECT_HEADERS else "record id"
            raise RequestError(f"the line has no {what}", where=f"{path}:{number}")
    return IdList(tuple(row[at] for _, row in rows), header)


def _fold(name: str) -> str:
    return name.strip().strip('"').casefold().replace(" ", "_").replace("-", "_")


def _find_column(cells: Sequence[str], headers: Sequence[str]) -> int | None:
    names = [_fold(cell) for cell in cells]
    return next((names.index(header) for header in headers if header in names), None)


def _find_delimiter(text: str, headers: Sequence[str]) -> str:
    """The delimiter by which line 1 has a column of ids; a comma if there is none."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    for delimiter in _DELIMITERS:
        if delimiter in first and _find_column(first.split(delimiter), headers) is not None:
            return delimiter
    return ","
