"""A custom PyTorch map-style dataset, given as `package.module:factory`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.core.errors import ConfigError, DataError, ExpungeError
from expunge.core.trust import find_module_file, make_importable, resolve
from expunge.data.data_dir import DataDir
from expunge.data.items import as_labels, read_item
from expunge.data.reading.readers import count_classes
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


#: Items that are read when labels are given, to compare: of so many classes the first and the last record, and so many
#: at equal distances.
_COMPARED_CLASSES, _COMPARED_EVENLY = 64, 32


def _given_labels(dataset: MapDataset, name: str) -> tuple[str, NDArray[np.int64]] | None:
    """The labels of a dataset in its attribute `labels` or `targets`, and the name of the attribute."""
    for attribute in ("labels", "targets"):
        found = getattr(dataset, attribute, None)
        if found is not None and hasattr(found, "__len__") and len(found) == len(dataset):
            return attribute, as_labels(found, f"{name}: {attribute}")
    return None


def read_labels(dataset: MapDataset, name: str) -> NDArray[np.int64]:
    """Read the labels of a dataset: its attribute `labels` or `targets`, compared with some items, else all items once.

    The label of every other item is compared when the item is read (`Records.read_features`).
    """
    given = _given_labels(dataset, name)
    count = len(dataset)
    with seed_item_reads():
        if given is None:
            values = [read_item(dataset, row, f"{name}: item {row}")[1] for row in range(count)]
            return np.asarray(values, dtype=np.int64)
        attribute, labels = given
        rows = set(np.linspace(0, count - 1, min(count, _COMPARED_EVENLY)).astype(int).tolist())
        for label in np.unique(labels)[:_COMPARED_CLASSES]:
            of_class = np.flatnonzero(labels == label)
            rows |= {int(of_class[0]), int(of_class[-1])}
        for row in sorted(rows):
            found = read_item(dataset, row, f"{name}: item {row}")[1]
            if found != labels[row]:
                raise DataError(
                    f"the item has the label {found}, but `{attribute}` has {labels[row]}",
                    where=f"{name}: item {row}",
                    hint="a target_transform changes items only; give the dataset `labels` as its items return them",
                )
    return labels


def wrap_dataset(dataset: MapDataset, name: str) -> Records:
    """Make streamed records from a map-style dataset.

    Args:
        dataset: its items are `(features, label)`; features are a tensor, an array or a PIL image, all of one shape.
            Optional attributes: `record_ids` (else `item-000000`, ..., and the order must never change), `subject_ids`,
            `classes` (names), `partition`, and `labels` or `targets` (else all items are read once), which must be the
            labels that the items have.
        name: name of the records.

    Raises:
        DataError: it is not such a dataset, it cannot read an item, or `labels` or `targets` are not those of the
            items.
    """
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise DataError(
            f"{type(dataset).__name__} is not a map-style dataset", where=name, hint="it needs __len__ and __getitem__"
        )
    labels = read_labels(dataset, name)
    ids = getattr(dataset, "record_ids", None)
    classes = getattr(dataset, "classes", None)
    if classes is None:
        classes = range(count_classes(labels, name))
    elif isinstance(classes, str) or not isinstance(classes, Iterable):
        raise DataError(f"`classes` is {str(classes)[:60]!r}, not a list of the names of the classes", where=name)
    return Records(
        name=name,
        record_ids=[f"item-{i:06d}" for i in range(len(dataset))] if ids is None else ids,
        labels=labels,
        class_names=tuple(str(c) for c in classes),
        stream=dataset,
        subject_ids=getattr(dataset, "subject_ids", None),
        partition=getattr(dataset, "partition", None),
    )


@register_source("python", files=_files, reads="those of the dataset")
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
    try:
        return wrap_dataset(dataset, factory)
    except ExpungeError:
        raise
    except Exception as error:
        raise DataError(f"the dataset failed: {type(error).__name__}: {error}", where=factory) from error
