"""Columns of Arrow tables as numpy arrays: converted without loss, or refused by column and row."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.core.errors import DataError
from expunge.core.reading.limits import BYTES
from expunge.data.items import BLANKS

_MISSING = "fill in or drop rows with missing values first"
_LARGEST = float(np.finfo(np.float32).max)


def _types() -> Any:
    import pyarrow

    return pyarrow.types


def _decode(column: Any) -> Any:
    """The values of a column that is stored as a dictionary."""
    return column.cast(column.type.value_type) if _types().is_dictionary(column.type) else column


def _refuse(column: Any, name: str, wanted: str, where: object, hint: str) -> DataError:
    kind = str(column.type)
    if _types().is_nested(column.type):
        hint = "nested columns have no role: store their parts as columns, or ignore them"
        if _types().is_struct(column.type) and {field.name for field in column.type} == {"bytes", "path"}:
            hint = "it has images: write them as files for the source folder; or read the dataset in Python, "
            hint += "Records.from_dataset(datasets.load_from_disk(folder))"
    return DataError(f"the column {name[:100]!r} is {kind[:60]}, not {wanted}", where=where, hint=hint)


def check_present(column: Any, name: str, where: object, start: int = 0) -> None:
    """Raise DataError if a value is null; `start` is the number of the first row."""
    if column.null_count:
        row = start + int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        more = f" (and in {column.null_count - 1} more rows)" if column.null_count > 1 else ""
        raise DataError(f"{name[:100]!r} is missing in row {row}{more}", where=where, hint=_MISSING)


def check_present_label(column: Any, name: str, where: object) -> None:
    """Raise DataError if a label is missing: null, or NaN, which makes numbers of a column of integers floating."""
    check_present(column, name, where)
    if _types().is_floating(column.type):
        absent = np.flatnonzero(np.isnan(column.to_numpy(zero_copy_only=False)))
        if len(absent):
            more = f" (and in {len(absent) - 1} more rows)" if len(absent) > 1 else ""
            text = f"the label {name[:100]!r} is missing in row {absent[0]}{more}"
            raise DataError(text, where=where, hint="fill it in, or drop the row; labels are class names, or integers")


def read_numbers(column: Any, name: str, where: object, start: int = 0) -> NDArray[np.float32]:
    """Convert a column of numbers or truth values to float32.

    Raises:
        DataError: the column has another type, or a value is missing, NaN, infinite or too large for float32.
    """
    types, column = _types(), _decode(column)
    if types.is_decimal(column.type):
        column = column.cast("float64")
    if not (types.is_integer(column.type) or types.is_floating(column.type) or types.is_boolean(column.type)):
        raise _refuse(column, name, "numbers", where, "give it another role, or store numbers")
    check_present(column, name, where, start)
    values = column.to_numpy(zero_copy_only=False).astype(np.float64, copy=False)
    wrong = ~(np.abs(values) <= _LARGEST)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise DataError(f"{name[:100]!r} is {values[row]} in row {start + row}", where=where, hint=_MISSING)
    return values.astype(np.float32)


def read_booleans(column: Any, name: str, where: object) -> NDArray[np.bool_]:
    """Convert a column of truth values, or of 0 and 1.

    Raises:
        DataError: the column has another type, or a value is missing.
    """
    types, column = _types(), _decode(column)
    if not (types.is_boolean(column.type) or types.is_integer(column.type)):
        raise _refuse(column, name, "true or false", where, "store a column of truth values")
    check_present(column, name, where)
    values = column.to_numpy(zero_copy_only=False)
    if not np.isin(values, (0, 1)).all():
        row = int(np.flatnonzero(~np.isin(values, (0, 1)))[0])
        raise DataError(f"{name[:100]!r} is {values[row]} in row {row}, not true or false", where=where)
    return values.astype(bool)


def read_codes(column: Any, name: str, where: object) -> tuple[NDArray[np.int64], list[str]]:
    """Convert a column to codes and the distinct strings that they are; a missing value is the empty string.

    Integers, dates and truth values (`True`, `False`) become the strings that Python makes of them.

    Raises:
        DataError: the column has another type.
    """
    import pyarrow
    import pyarrow.compute as compute

    types, column = _types(), _decode(column)
    is_text = types.is_string(column.type) or types.is_large_string(column.type) or types.is_string_view(column.type)
    if types.is_boolean(column.type):
        column = compute.if_else(column, "True", "False")
    elif not is_text:
        if not (types.is_integer(column.type) or types.is_temporal(column.type) or types.is_null(column.type)):
            hint = "store integers or strings: 1.0 and 1 would be two values"
            raise _refuse(column, name, "strings or integers", where, hint)
        column = column.cast(pyarrow.string())
    found = column.dictionary_encode()
    chunks = found.combine_chunks() if isinstance(found, pyarrow.ChunkedArray) else found
    if isinstance(chunks, pyarrow.ChunkedArray):  # no chunk at all, or more than one array can hold
        chunks = pyarrow.concat_arrays(chunks.chunks) if chunks.num_chunks else pyarrow.array([], chunks.type)
    names = [str(value) for value in chunks.dictionary.to_pylist()]
    codes = chunks.indices.fill_null(len(names)).to_numpy(zero_copy_only=False).astype(np.int64)
    if chunks.null_count:
        if "" in names:
            codes[codes == len(names)] = names.index("")
        else:
            names.append("")
    return codes, names


def read_strings(column: Any, name: str, where: object, what: str = "") -> NDArray[np.str_]:
    """Convert a column to strings (see `read_codes`).

    Args:
        column: the column.
        name: its name.
        where: for messages.
        what: what the values are, if none may be blank.

    Raises:
        DataError: the column has another type, or a value is blank.
    """
    codes, names = read_codes(column, name, where)
    if what:
        check_filled(codes, names, name, where, what)
    longest = max(map(len, names), default=0)
    BYTES.check(4 * len(codes) * longest, "the column takes", where=f"{where}: {name[:100]}", error=DataError)
    return np.asarray(names, dtype=np.str_)[codes] if names else np.empty(0, dtype=np.str_)


def check_filled(codes: NDArray[np.int64], names: list[str], name: str, where: object, what: str) -> None:
    """Raise DataError for a blank value of a role in which several blank values would count as one."""
    for code, value in enumerate(names):
        if not value.strip(BLANKS):
            rows = np.flatnonzero(codes == code)
            more = f" (and in {len(rows) - 1} more rows)" if len(rows) > 1 else ""
            text = f"the {what} {name[:100]!r} is blank in row {int(rows[0])}{more}"
            raise DataError(text, where=where, hint="fill it in, or drop the row")


def read_texts(column: Any, name: str, where: object, start: int = 0) -> list[str]:
    """Convert a column of strings to a list; an empty string is a text, a missing one is an error.

    Raises:
        DataError: the column has another type, or a text is missing.
    """
    types, column = _types(), _decode(column)
    if not (types.is_string(column.type) or types.is_large_string(column.type) or types.is_string_view(column.type)):
        raise _refuse(column, name, "text", where, "a text is a string")
    check_present(column, name, where, start)
    texts: list[str] = column.to_pylist()
    return texts
