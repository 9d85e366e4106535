"""Tables in Parquet and Arrow files, with a declared role for each column."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expunge.core.hashing import hash_json
from expunge.data.data_dir import DataDir
from expunge.data.records import Records
from expunge.data.registry import register_source
from expunge.data.tables.build import build_records
from expunge.data.tables.reader import list_table_files, open_table
from expunge.data.tables.roles import Roles
from expunge.data.tables.tokens import list_tokenizer_files


def _files(
    directory: DataDir, path: str | os.PathLike[str], tokenizer: str | None = None, **options: Any
) -> list[Path]:
    found = list_table_files(directory.find_path(path))
    return found if tokenizer is None else [*found, *list_tokenizer_files(directory.find_directory(tokenizer))]


@register_source("parquet", files=_files, reads="a Parquet or Arrow file, or a folder of Parquet files")
def parquet(
    directory: DataDir,
    path: str | os.PathLike[str],
    label: str,
    id: str | None = None,
    subject: str | None = None,
    partition: str | None = None,
    numeric: Sequence[str] = (),
    categorical: Sequence[str] = (),
    text: Sequence[str] = (),
    boolean: Sequence[str] = (),
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    categories: Mapping[str, Sequence[object]] | None = None,
    classes: Sequence[object] | None = None,
    tokenizer: str | None = None,
    max_length: int | None = None,
    stream: bool = False,
) -> Records:
    """A custom table in Parquet or Arrow files with a declared role for each column; parts and subjects as declared.

    Args:
        directory: the data directory.
        path: the file (`.parquet`, or `.arrow`, `.feather`, `.ipc`), or a folder of `*.parquet` with equal columns.
        label: column of the class: strings or integers.
        id: column of the record id; without it ids are `row-000000`, ..., and rows may only be added at the end.
        subject: column of the subject id.
        partition: column of the official partition, `train` or `test`.
        numeric: columns of numbers, as float32.
        categorical: columns of strings or integers, one-hot; a missing value is a separate category.
        text: a column of text, or two that are read as a pair, for `tokenizer`.
        boolean: columns of truth values that can select a forget set; they are not features.
        select: columns of strings or integers that can select a forget set; they are not features.
        ignore: columns that are not used.
        categories: the values of categorical columns, in order; the default is all values in the file, sorted.
        classes: the class names, in order; the default is all labels in the file, sorted.
        tokenizer: folder of a Hugging Face tokenizer, for `text`.
        max_length: most tokens of a text; longer ones are cut. The default is the limit of the tokenizer.
        stream: for features that do not fit in memory: they are written to one file, and read from it in batches.
    """
    place = directory.find_path(path)
    folder = None if tokenizer is None else directory.find_directory(tokenizer)
    roles = Roles(label, id, subject, partition, numeric, categorical, text, boolean, select, ignore)
    return build_records(
        open_table(place),
        roles,
        name=place.stem,
        categories=categories,
        classes=classes,
        tokenizer=folder,
        max_length=max_length,
        **stream_options(stream, place, _files(directory, path, tokenizer)),
    )


def stream_options(stream: bool, place: Path, files: Sequence[Path]) -> dict[str, Any]:
    """The options of `build_records` for streamed features: the name of their file, and what it depends on."""
    if not stream:
        return {}
    stamps = [[str(p.absolute()), p.stat().st_size, p.stat().st_mtime_ns, p.stat().st_ctime_ns] for p in files]
    return {"stream": f"features-{hash_json(str(place.absolute()))[:16]}", "stamps": stamps}
