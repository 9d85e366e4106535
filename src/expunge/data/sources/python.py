"""A custom PyTorch map-style dataset, given as `package.module:factory`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.core.errors import ConfigError, DataError
from expunge.core.trust import find_module_file, make_importable, resolve
from expunge.data.data_dir import DataDir
from expunge.data.records import MapDataset, Records, seed_item_reads
from expunge.data.registry import register_source


def _split_name(factory: str) -> tuple[str, str]:
    module, _, name = str(factory).partition(":")
    if not module or not name or ":" in name:
        raise ConfigError(
            f"{factory!r} is not the name of a factory", where="factory", hint="write it as package.module:function"
        )
    return module, name


def _find_file(module: str) -> Path:
    """Find the file of a module without importing it, so that a fingerprint is cheap."""
    where = find_module_file(module)
    if where is None or not Path(where).is_file():
        raise ConfigError(
            f"there is no Python module {module!r}",
            where="factory",
            hint="is it installed, or in the current directory?",
        )
    return Path(where)


def _is_dataset(found: type) -> bool:
    return hasattr(found, "__len__") and hasattr(found, "__getitem__")


def _files(
    directory: DataDir, factory: str, arguments: Mapping[str, Any] | None = None, depends_on: Sequence[str] = ()
) -> list[Path]:
    return [_find_file(_split_name(factory)[0]), *(directory.find_file(path) for path in depends_on)]


def _read_labels(dataset: MapDataset, name: str) -> NDArray[np.int64]:
    """Read the labels of a dataset: its attribute `labels` or `targets`, else all items once."""
    for attribute in ("labels", "targets"):
        found = getattr(dataset, attribute, None)
        if found is not None and len(found) == len(dataset):
            values = [int(label) for label in found]
            return np.asarray(values, dtype=np.int64)
    values = []
    with seed_item_reads():
        for row in range(len(dataset)):
            item = dataset[row]
            try:
                _, label = item
                values.append(int(label))
            except (TypeError, ValueError) as error:
                raise DataError(
                    "an item is not a pair (features, integer)",
                    where=f"{name}: item {row}",
                    hint="see docs/data.md",
                ) from error
    return np.asarray(values, dtype=np.int64)


def wrap_dataset(dataset: MapDataset, name: str) -> Records:
    """Make streamed records from a map-style dataset.

    Args:
        dataset: its items are `(features, label)`; features are a tensor or an array, all of one shape. Optional
            attributes: `record_ids` (else `item-000000`, ..., and the order must never change), `subject_ids`,
                `classes`
            (names), `partition`, and `labels` or `targets` (else all items are read once).
        name: name of the records.

    Raises:
        DataError: it is not such a dataset.
    """
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise DataError(
            f"{type(dataset).__name__} is not a map-style dataset", where=name, hint="it needs __len__ and __getitem__"
        )
    labels = _read_labels(dataset, name)
    ids = getattr(dataset, "record_ids", None)
    classes = getattr(dataset, "classes", None)
    if classes is None:
        classes = range(int(labels.max(initial=0)) + 1)
    return Records(
        name=name,
        record_ids=[f"item-{i:06d}" for i in range(len(dataset))] if ids is None else ids,  # type: ignore[arg-type]
        labels=labels,
        class_names=tuple(str(c) for c in classes),
        stream=dataset,
        subject_ids=getattr(dataset, "subject_ids", None),
        partition=getattr(dataset, "partition", None),
    )


@register_source("python", files=_files)
def python(
    directory: DataDir, factory: str, arguments: Mapping[str, Any] | None = None, depends_on: Sequence[str] = ()
) -> Records:
    """A custom PyTorch map-style dataset, streamed; `factory` is `package.module:function`.

    Args:
        directory: the data directory.
        factory: called with `arguments`, it returns the dataset (see `wrap_dataset`). It is a dataset class or a
            function defined in that package, and is checked by `expunge.core.trust`.
        arguments: keyword arguments of the factory.
        depends_on: files that the code reads; the fingerprint of the source covers them.
    """
    _find_file(_split_name(factory)[0])
    make = resolve(factory, accepts=_is_dataset, wanted="a dataset with __len__ and __getitem__", error=ConfigError)
    try:
        with make_importable(factory):
            dataset = make(**(arguments or {}))
    except (Exception, SystemExit, GeneratorExit) as error:
        raise DataError(f"the factory failed: {type(error).__name__}: {error}", where=factory) from error
    for path in depends_on:
        directory.find_file(path)
    return wrap_dataset(dataset, factory)
