"""Hugging Face datasets that were saved to disk, with a declared role for each column."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from expunge.core.errors import ConfigError, DataError, unknown_name_hint
from expunge.data.data_dir import DataDir
from expunge.data.reading.readers import OFFICIAL_PARTS
from expunge.data.records import Records
from expunge.data.registry import register_source
from expunge.data.tables.build import build_records
from expunge.data.tables.hf import load_saved, open_dataset
from expunge.data.tables.reader import TableReader
from expunge.data.tables.roles import Roles
from expunge.data.tables.tokens import list_tokenizer_files

from .parquet import stream_options


def _files(
    directory: DataDir, path: str | os.PathLike[str], tokenizer: str | None = None, **options: Any
) -> list[Path]:
    folder = directory.find_directory(path)
    found = sorted(p for p in folder.rglob("*") if p.suffix in (".arrow", ".json") and p.is_file())
    return found if tokenizer is None else [*found, *list_tokenizer_files(directory.find_directory(tokenizer))]


@register_source("hf-dataset", files=_files, reads="a folder that `save_to_disk` wrote")
def hf_dataset(
    directory: DataDir,
    path: str | os.PathLike[str],
    label: str,
    id: str | None = None,
    subject: str | None = None,
    partition: str | Mapping[str, str] | None = None,
    part: str | None = None,
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
    """A Hugging Face dataset saved to disk with a declared role for each column; partition and subjects as declared.

    Args:
        directory: the data directory.
        path: the folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote; nothing is downloaded.
        label: column of the class; the names of a `ClassLabel` are the classes.
        id: column of the record id; without it ids are `row-000000`, ....
        subject: column of the subject id.
        partition: the column of the official partition; or, of a `DatasetDict`, `{train: NAME, test: NAME}`, whose ids
            are then `NAME-000000`, ... without an `id`.
        part: of a `DatasetDict`, the name of the only dataset that is used.
        numeric: columns of numbers; this and the next options are those of the source `parquet`.
        categorical: columns that become one-hot.
        text: one or two columns for `tokenizer`.
        boolean: columns of truth values that can select a forget set.
        select: columns of strings or integers that can select a forget set.
        ignore: columns that are not used.
        categories: the values of categorical columns, in order.
        classes: the class names, in order, if the column has none.
        tokenizer: folder of a Hugging Face tokenizer, for `text`.
        max_length: most tokens of a text.
        stream: for features that do not fit in memory.
    """
    folder = directory.find_directory(path)
    tokens = None if tokenizer is None else directory.find_directory(tokenizer)
    found = load_saved(folder)
    given: dict[str, Any] = {}
    column = partition if isinstance(partition, str) else None
    if isinstance(found, dict):
        table, given = _join(found, partition, part, folder, id)
    else:
        if part is not None or isinstance(partition, Mapping):
            raise ConfigError("the folder has one dataset, without parts", where=folder, hint="leave out `part`")
        table = open_dataset(found, folder)
    roles = Roles(label, id, subject, column, numeric, categorical, text, boolean, select, ignore)
    return build_records(
        table,
        roles,
        name=folder.name,
        categories=categories,
        classes=classes,
        tokenizer=tokens,
        max_length=max_length,
        given=given,
        **stream_options(stream, folder, _files(directory, path, tokenizer)),
    )


def _join(
    found: dict[str, Any], partition: Any, part: str | None, folder: Path, id: str | None
) -> tuple[TableReader, dict[str, Any]]:
    """One dataset of several, or the official parts one after the other."""
    import pyarrow

    hint = (
        f"the parts are {', '.join(found)}: name one (part: {next(iter(found))}), or partition: {{train: .., test: ..}}"
    )
    wanted = [part] if part is not None else []
    if isinstance(partition, Mapping):
        if set(partition) != set(OFFICIAL_PARTS) or part is not None:
            raise ConfigError("partition names a dataset for train and one for test", where="partition", hint=hint)
        wanted = [str(partition[name]) for name in OFFICIAL_PARTS]
    if not wanted:
        raise ConfigError("the folder has several datasets", where=folder, hint=hint)
    for name in wanted:
        if name not in found:
            raise ConfigError(f"there is no part {name!r}", where=folder, hint=unknown_name_hint(name, list(found)))
    tables = [open_dataset(found[name], folder / name) for name in wanted]
    if len(tables) == 1:
        return tables[0], {}
    first, second = tables
    if first.table.schema.remove_metadata() != second.table.schema.remove_metadata():
        raise DataError("the parts have other columns", where=folder, hint=hint)
    joined = TableReader(pyarrow.concat_tables([t.table for t in tables]), folder, first.class_names)
    sizes = [t.count for t in tables]
    given: dict[str, Any] = {"partition": np.repeat(np.asarray(OFFICIAL_PARTS), sizes)}
    if id is None:
        given["record_ids"] = [
            f"{name}-{row:06d}" for name, size in zip(wanted, sizes, strict=True) for row in range(size)
        ]
    return joined, given
