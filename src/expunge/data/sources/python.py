"""Any PyTorch map-style dataset, given as `package.module:factory`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.core.errors import ConfigError, DataError
from expunge.core.trust import module_file, reachable, resolve
from expunge.data.data_dir import Place
from expunge.data.records import MapDataset, Records, reading_items
from expunge.data.registry import register_source


def _parts(factory: str) -> tuple[str, str]:
    module, _, name = str(factory).partition(":")
    if not module or not name or ":" in name:
        raise ConfigError(
            f"{factory!r} does not name a factory", where="factory", hint="write it as package.module:function"
        )
    return module, name


def _module_file(module: str) -> Path:
    """The file of a module; nothing is imported, so that a fingerprint stays cheap."""
    where = module_file(module)
    if where is None or not Path(where).is_file():
        raise ConfigError(f"there is no Python module {module!r}", where="factory", hint="is it installed, or here?")
    return Path(where)


def _is_dataset(found: type) -> bool:
    return hasattr(found, "__len__") and hasattr(found, "__getitem__")


def _files(
    place: Place, factory: str, arguments: Mapping[str, Any] | None = None, depends_on: Sequence[str] = ()
) -> list[Path]:
    return [_module_file(_parts(factory)[0]), *(place.file(path) for path in depends_on)]


def _labels(dataset: MapDataset, name: str) -> NDArray[np.int64]:
    """The labels of a dataset: its attribute `labels` or `targets`, else one reading of all items."""
    for attribute in ("labels", "targets"):
        found = getattr(dataset, attribute, None)
        if found is not None and len(found) == len(dataset):
            values = [int(label) for label in found]
            return np.asarray(values, dtype=np.int64)
    values = []
    with reading_items():
        for row in range(len(dataset)):
            item = dataset[row]
            try:
                _, label = item
                values.append(int(label))
            except (TypeError, ValueError) as error:
                raise DataError(
                    "an item is not a pair (features, whole number)",
                    where=f"{name}: item {row}",
                    hint="see docs/data.md",
                ) from error
    return np.asarray(values, dtype=np.int64)


def records_of(dataset: MapDataset, name: str) -> Records:
    """Streamed records of a map-style dataset.

    Args:
        dataset: items are `(features, label)`, features a tensor or an array, all of one shape. Optional attributes:
            `record_ids` (else `item-000000`, ..., and the order must never change), `subject_ids`, `classes` (names),
            `partition`, and `labels` or `targets` (else all items are read once).
        name: name of the records.

    Raises:
        DataError: this is no such dataset.
    """
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise DataError(
            f"{type(dataset).__name__} is not a map-style dataset", where=name, hint="it needs __len__ and __getitem__"
        )
    labels = _labels(dataset, name)
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
    place: Place, factory: str, arguments: Mapping[str, Any] | None = None, depends_on: Sequence[str] = ()
) -> Records:
    """A custom PyTorch map-style dataset, streamed; `factory` is `package.module:function`.

    Args:
        place: the data directory.
        factory: called with `arguments`, it returns the dataset (`records_of` says what it needs). It goes through the
            gate `expunge.core.trust`: a dataset class, or a function, defined in that package.
        arguments: keyword arguments of the factory.
        depends_on: files whose change makes this another data set (for the fingerprint, which cannot see what the code
            reads).
    """
    _module_file(_parts(factory)[0])
    make = resolve(factory, accepts=_is_dataset, wanted="a dataset with __len__ and __getitem__", error=ConfigError)
    try:
        with reachable(factory):
            dataset = make(**(arguments or {}))
    except Exception as error:
        raise DataError(f"the factory failed: {type(error).__name__}: {error}", where=factory) from error
    for path in depends_on:
        place.file(path)
    return records_of(dataset, factory)
