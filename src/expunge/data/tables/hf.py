"""Hugging Face datasets as tables: loaded from a folder, or as they are; nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from expunge.core.errors import DataError
from expunge.data.reading.extras import import_extra

from .reader import TableReader


def load_saved(folder: Path) -> Any:
    """Load what `save_to_disk` wrote: a dataset, or several by name.

    Raises:
        ConfigError: the package datasets is not installed.
        DataError: the folder is not such a folder, or is damaged.
    """
    datasets = import_extra("datasets", "hf", "a saved Hugging Face dataset")
    try:
        found = datasets.load_from_disk(str(folder))
    except Exception as error:  # of any class: the library's, pyarrow's, and those of damaged JSON
        text = " ".join(str(error).split())[:200]
        raise DataError(
            f"is not a saved dataset ({type(error).__name__}: {text})",
            where=folder,
            hint="dataset.save_to_disk(folder)",
        ) from error
    return dict(found) if isinstance(found, dict) else found


def open_dataset(dataset: Any, where: object) -> TableReader:
    """The columns of a dataset; the names of `ClassLabel` columns are the classes of their integers."""
    table = dataset.data.table
    if dataset._indices is not None:  # a selection, a shuffle or a split of the stored rows
        table = table.take(dataset._indices.column(0))
    names = {name: list(f.names) for name, f in dataset.features.items() if type(f).__name__ == "ClassLabel"}
    return TableReader(table, where, names)
