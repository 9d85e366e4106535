"""Records from a table with typed columns: in memory, or streamed from a file of packed features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.core.errors import ConfigError, DataError, join_names
from expunge.core.hashing import hash_json
from expunge.core.reading.limits import BYTES
from expunge.data.items import hint_labels
from expunge.data.reading.readers import make_row_ids
from expunge.data.records import Records

from .columns import (
    check_filled,
    check_present_label,
    read_booleans,
    read_codes,
    read_numbers,
    read_strings,
    read_texts,
)
from .packed import write_packed
from .reader import ROWS, ColumnReader
from .roles import Roles, check_categories, check_listed_once, sort_names
from .tokens import load_tokenizer, tokenize


def build_records(
    table: ColumnReader,
    roles: Roles,
    *,
    name: str,
    categories: Mapping[str, Sequence[object]] | None = None,
    classes: Sequence[object] | None = None,
    tokenizer: Any = None,
    max_length: int | None = None,
    stream: str = "",
    stamps: Any = None,
    given: Mapping[str, Any] | None = None,
) -> Records:
    """Make records from a table.

    Args:
        table: the columns.
        roles: what each column is for.
        name: name of the records.
        categories: values of categorical columns, in order; the default is all values, sorted.
        classes: class names, in order; the default is all labels, sorted.
        tokenizer: the folder of a tokenizer, or the tokenizer itself, for text.
        max_length: see `tokenize`.
        stream: name of the file of packed features, if the features do not fit in memory; "" for in memory.
        stamps: JSON values on which this file depends.
        given: fields of `Records` that are not columns: `labels` with `class_names`, `record_ids`, `subject_ids`, ....

    Raises:
        ConfigError: roles, categories or classes do not fit the columns.
        DataError: values are missing or have another type.
    """
    where = table.where
    roles.check(table.names, where)
    check_categories(categories, roles.categorical)
    if bool(roles.text) != (tokenizer is not None):
        what = "text needs a tokenizer" if roles.text else "a tokenizer needs a column of text"
        raise ConfigError(what, where=where, hint="text: [message], tokenizer: path/to/folder")
    fixed = dict(given or {})
    if "labels" not in fixed:
        fixed["labels"], fixed["class_names"] = _read_labels(table, roles.label, classes)
    for field, column, what in (
        ("record_ids", roles.id, "record id"), ("subject_ids", roles.subject, "subject id"),
        ("partition", roles.partition, "partition"),
    ):  # fmt: skip
        if column is not None:
            fixed[field] = read_strings(table.read(column), column, where, what)
    fixed.setdefault("record_ids", None)
    if fixed["record_ids"] is None:
        fixed["record_ids"] = make_row_ids(table.count, 6, where=where)
    columns: dict[str, NDArray[Any]] = {n: read_booleans(table.read(n), n, where) for n in roles.boolean}
    columns |= {n: read_strings(table.read(n), n, where) for n in roles.select}
    coded: dict[str, NDArray[np.int64]] = {}
    widths = [1] * len(roles.numeric)
    for column in roles.categorical:
        codes, found = read_codes(table.read(column), column, where)
        values = (categories or {}).get(column)
        known = sort_names(set(found)) if values is None else check_listed_once(values, f"categories: {column}")
        columns[column] = np.asarray(found, dtype=np.str_)[codes]
        coded[column] = _lookup(codes, found, known, column, where)
        widths.append(len(known))
    if roles.text:
        features = _read_tokens(table, roles, tokenizer, max_length)
        fixed |= {"fields": features.fields, "cautions": (*fixed.get("cautions", ()), *features.cautions)}
        shape, dtype, blocks = (table.count, *features.fields.input_shape), "int64", features.blocks()
        places: dict[str, range] = {}
    else:
        starts = np.cumsum([0, *widths]).tolist()
        order = (*roles.numeric, *roles.categorical)
        places = {n: range(s, s + w) for n, s, w in zip(order, starts, widths, strict=False)}
        shape, dtype = (table.count, starts[-1]), "float32"
        blocks = _read_blocks(
            table, roles.numeric, [(places[n].start, coded[n]) for n in roles.categorical], starts[-1]
        )
    if stream:
        key = [stamps, list(roles.numeric), list(roles.categorical), list(roles.text), max_length]
        key.append({n: list(map(str, values)) for n, values in (categories or {}).items()})
        ids = np.asarray(fixed["record_ids"], dtype=np.str_)
        packed = write_packed(stream, hash_json(key), blocks, shape, dtype, fixed["labels"], ids)
        return Records(name=name, stream=packed, columns=columns, **fixed)
    BYTES.check(int(np.prod(shape)) * np.dtype(dtype).itemsize, "its features take", where=where, error=DataError)
    out = np.empty(shape, dtype=dtype)
    start = 0
    for block in blocks:
        out[start : start + len(block)] = block
        start += len(block)
    return Records(name=name, features=out, columns=columns, feature_columns=places, **fixed)


def _read_labels(
    table: ColumnReader, label: str, classes: Sequence[object] | None
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    column = table.read(label)
    if str(column.type) in ("double", "float", "halffloat"):  # of integers with gaps, for example
        check_present_label(column, label, table.where)
    codes, found = read_codes(column, label, table.where)
    check_filled(codes, found, label, table.where, "label")
    if label in table.class_names:  # integers that are indices of these names
        names = table.class_names[label]
        wrong = next((name for name in found if not (name.isdecimal() and int(name) < len(names))), None)
        if wrong is not None:
            row = int(np.flatnonzero(codes == found.index(wrong))[0])
            numbers = np.asarray([int(name) if name.isdecimal() else -1 for name in found])
            raise DataError(
                f"the label {wrong} of row {row} is not one of the {len(names)} classes",
                where=table.where,
                hint=hint_labels(numbers, names),
            )
        indices = np.asarray([int(name) for name in found], dtype=np.int64)
        if classes is not None and list(map(str, classes)) != names:
            raise ConfigError("the file has the names of the classes", where="classes", hint=join_names(names))
        return indices[codes], tuple(names)
    names = sort_names(set(found)) if classes is None else check_listed_once(classes, "classes")
    return _lookup(codes, found, names, label, table.where), tuple(names)


def _lookup(
    codes: NDArray[np.int64], found: Sequence[str], names: Sequence[str], column: str, where: object
) -> NDArray[np.int64]:
    """The index in `names` of each value; an unknown value is an error."""
    index = {name: i for i, name in enumerate(names)}
    for code, value in enumerate(found):
        if value not in index:
            row = int(np.flatnonzero(codes == code)[0])
            text = f"{column[:100]} is {value[:100]!r} in row {row}, not one of {join_names(list(names))}"
            some = f"list the values of the column themselves: {join_names(list(found[:8]))}"
            raise DataError(text, where=where, hint=some if not set(found) & set(names) else None)
    return np.asarray([index[value] for value in found], dtype=np.int64)[codes]


def _read_blocks(
    table: ColumnReader, numeric: Sequence[str], coded: Sequence[tuple[int, NDArray[np.int64]]], width: int
) -> Iterator[NDArray[np.float32]]:
    """The features, some rows at a time: the numbers, then each category one-hot from its first column on."""
    start = 0
    for batch in table.batches(numeric) if numeric else _count_rows(table.count):
        count = len(next(iter(batch.values())))
        block = np.zeros((count, width), dtype=np.float32)
        for position, name in enumerate(numeric):
            block[:, position] = read_numbers(batch[name], name, table.where, start)
        for first, codes in coded:
            block[np.arange(count), first + codes[start : start + count]] = 1.0
        yield block
        start += count


def _count_rows(count: int) -> Iterator[dict[str, Any]]:
    for start in range(0, count, ROWS):
        yield {"": range(min(ROWS, count - start))}


def _read_tokens(table: ColumnReader, roles: Roles, tokenizer: Any, max_length: int | None) -> Any:
    found = load_tokenizer(Path(tokenizer)) if isinstance(tokenizer, (str, Path)) else tokenizer

    def read() -> Iterator[list[list[str]]]:
        start = 0
        for batch in table.batches(list(roles.text)):
            texts = [read_texts(batch[name], name, table.where, start) for name in roles.text]
            yield texts
            start += len(texts[0])

    return tokenize(found, read(), max_length, table.where)
