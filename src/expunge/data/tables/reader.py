"""Readers of columns: Parquet files, which are read a column or some rows at a time, and Arrow tables."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from expunge.core.errors import ConfigError, DataError, join_names
from expunge.core.reading.limits import BYTES, COLUMNS, RECORD_COST
from expunge.data.reading.extras import import_extra

#: Rows that are converted at once.
ROWS = 65_536
_ARROW = (".arrow", ".feather", ".ipc")
_AGAIN = "it is truncated or of another format; copy or write it again"


class ColumnReader(Protocol):
    """A table of which a column, or some rows of some columns, can be read.

    Attributes:
        where: the file or folder, for messages.
        names: names of the columns.
        count: number of rows.
        class_names: the names of the classes of columns whose integers are class indices.
    """

    where: object
    names: list[str]
    count: int
    class_names: dict[str, list[str]]

    def read(self, name: str) -> Any:
        """Read a column, as a `pyarrow.ChunkedArray`."""

    def batches(self, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield all rows of some columns in order, some at a time, as `pyarrow` arrays by name."""


class TableReader:
    """The columns of an Arrow table, in memory or mapped.

    Args:
        table: a `pyarrow.Table`.
        where: for messages.
        class_names: see `ColumnReader`.
    """

    def __init__(self, table: Any, where: object, class_names: dict[str, list[str]] | None = None) -> None:
        self.table, self.where, self.class_names = table, where, class_names or {}
        self.names: list[str] = list(table.column_names)
        self.count: int = table.num_rows
        check_header(self.names, self.count, where)

    def read(self, name: str) -> Any:
        return self.table.column(name)

    def batches(self, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        chosen = self.table.select(list(names))
        for start in range(0, self.count, ROWS):
            part = chosen.slice(start, ROWS)
            yield {name: part.column(name) for name in names}


class ParquetReader:
    """The columns of one or more Parquet files with equal columns, of which only what is asked for is read.

    Args:
        paths: the files, in order.
        where: the file or folder, for messages.

    Raises:
        DataError: a file is damaged, or the columns of two files differ.
    """

    def __init__(self, paths: Sequence[Path], where: object) -> None:
        self.paths, self.where = list(paths), where
        self.class_names: dict[str, list[str]] = {}
        self._parquet = import_extra("pyarrow.parquet", "parquet", "a Parquet file")
        self.count, first = 0, None
        for path in self.paths:
            with naming_file(path), self._parquet.ParquetFile(path, memory_map=False) as file:
                schema, rows = file.schema_arrow.remove_metadata(), file.metadata.num_rows
            if first is None:
                first = schema
                self.names: list[str] = list(schema.names)
            elif not schema.equals(first):
                raise DataError(
                    f"has other columns than {self.paths[0].name}: {_describe_difference(schema, first)}",
                    where=path,
                    hint="all files of one table have equal names and types of columns, in one order",
                )
            self.count += rows
        check_header(self.names, self.count, where)

    def read(self, name: str) -> Any:
        import pyarrow

        chunks: list[Any] = []
        for path in self.paths:
            with naming_file(path), self._parquet.ParquetFile(path, memory_map=False) as file:
                chunks += file.read(columns=[name]).column(name).chunks
        kind = chunks[0].type if chunks else pyarrow.null()
        return pyarrow.chunked_array(chunks, kind)

    def batches(self, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        for path in self.paths:
            with naming_file(path), self._parquet.ParquetFile(path, memory_map=False) as file:
                for batch in file.iter_batches(batch_size=ROWS, columns=list(names)):
                    yield {name: batch.column(name) for name in names}


@contextlib.contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """Turn an error of pyarrow within the block into a DataError that names the file."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        text = " ".join(str(error).split())[:150]
        raise DataError(f"cannot be read ({text})", where=path, hint=_AGAIN) from error


def check_header(names: Sequence[str], count: int, where: object) -> None:
    """Raise DataError for a duplicate column, no rows, or more columns or rows than are read."""
    duplicates = (
        sorted(name for name in set(names) if list(names).count(name) > 1) if len(set(names)) < len(names) else []
    )
    if duplicates:
        raise DataError(f"the column {duplicates[0][:60]!r} is a duplicate", where=where)
    if len(names) > COLUMNS:
        raise DataError(f"has {len(names):,} columns; at most {COLUMNS:,} are read", where=where)
    if not count:
        raise DataError("has no rows", where=where)
    BYTES.check(count * RECORD_COST, f"the ids of {count:,} records take", where=where, error=DataError)


def list_table_files(path: Path) -> list[Path]:
    """The files of a table: the file itself, or the Parquet files of a folder, sorted by name.

    Raises:
        DataError: a folder has no Parquet file.
    """
    if path.is_file():
        return [path]
    found = sorted(
        p for p in path.iterdir() if p.suffix == ".parquet" and p.is_file() and not p.name.startswith((".", "_"))
    )
    if not found:
        raise DataError("has no file *.parquet", where=path, hint="name the file, or the folder of the files")
    return found


def open_table(path: Path) -> ColumnReader:
    """Open a Parquet file, a folder of Parquet files, or an Arrow file (IPC, Feather version 2, mapped).

    Raises:
        ConfigError: pyarrow is not installed.
        DataError: a file is damaged.
    """
    files = list_table_files(path)
    if path.suffix.lower() not in _ARROW:
        return ParquetReader(files, path)
    pyarrow = import_extra("pyarrow", "parquet", "an Arrow file")
    with naming_file(path):
        source = pyarrow.memory_map(str(path))
        head = source.read(8)
        if head[:4] == b"FEA1":
            raise ConfigError("is Feather version 1", where=path, hint="write it with pyarrow.feather.write_feather")
        source.seek(0)
        opened = pyarrow.ipc.open_file(source) if head[:6] == b"ARROW1" else pyarrow.ipc.open_stream(source)
        return TableReader(opened.read_all(), path)


def _describe_difference(schema: Any, first: Any) -> str:
    """The columns that one of two files has, and the other has not."""
    sides = [{f"{field.name[:60]} ({field.type})": None for field in one} for one in (schema, first)]
    texts = []
    for verb, own, other in (("it has", *sides), ("it lacks", *sides[::-1])):
        only = [text for text in own if text not in other]
        if only:
            texts.append(f"{verb} {join_names(only)}")
    return " and ".join(texts)[:300] or "they are in another order"
