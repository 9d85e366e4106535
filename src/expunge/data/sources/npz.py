"""Custom arrays in an npz file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.core.errors import ConfigError, DataError, unknown_name_hint
from expunge.core.reading.limits import BYTES
from expunge.data.data_dir import DataDir
from expunge.data.items import as_labels
from expunge.data.reading.readers import check_same_length, count_classes, make_row_ids, read_npz
from expunge.data.records import Records
from expunge.data.registry import register_source

LAYOUTS = {
    "as-is": "N x C x H x W, N x C x T or N x F, as in the model's input",
    "nhwc": "N x H x W x C images",
    "nhw": "N x H x W images of one channel",
}


def _files(directory: DataDir, path: str | os.PathLike[str], **options: Any) -> list[Path]:
    return [directory.find_file(path)]


def _features(array: NDArray[Any], layout: str, where: str) -> NDArray[Any]:
    wanted = {"nhwc": 4, "nhw": 3}.get(layout)
    if wanted is not None and array.ndim != wanted:
        raise DataError(
            f"the layout {layout!r} has {wanted} dimensions; the array has the shape {array.shape}", where=where
        )
    if array.ndim < 2 or array.dtype.kind not in "biuf":
        raise DataError(f"features are {array.dtype} of shape {array.shape}, not numbers of shape N x ...", where=where)
    if 0 in array.shape[1:]:
        raise DataError(f"records of shape {array.shape[1:]} have no numbers", where=where)
    BYTES.check(4 * array.size, "as float32, the features take", where=where, error=DataError)
    if layout == "nhwc":
        array = np.moveaxis(array, -1, 1)
    elif layout == "nhw":
        array = array[:, None]
    return np.ascontiguousarray(array, dtype=np.uint8 if array.dtype == np.uint8 else np.float32)


@register_source("npz", files=_files)
def npz(
    directory: DataDir,
    path: str | os.PathLike[str],
    features: str = "features",
    labels: str = "labels",
    layout: str = "as-is",
    ids: str | None = None,
    subjects: str | None = None,
    partition: str | None = None,
    class_names: str | None = None,
    columns: Sequence[str] = (),
) -> Records:
    """Custom arrays by key, from an npz file without Python objects.

    Args:
        directory: the data directory.
        path: the file, relative to the current directory or to the data directory.
        features: key of the features. `uint8` means images 0..255 (the model's input is x / 255); other types become
            float32.
        labels: key of the labels, integers from 0.
        layout: `as-is`, `nhwc` or `nhw` (`LAYOUTS`).
        ids: key of the record ids; without it they are `row-000000`, ..., and the order of the rows must never change.
        subjects: key of the subject ids.
        partition: key of the official partition, `train` or `test` for each record.
        class_names: key of the class names; without it they are numbers.
        columns: keys of further columns that can select a forget set.
    """
    if layout not in LAYOUTS:
        raise ConfigError(f"unknown layout {layout!r}", where="layout", hint=unknown_name_hint(layout, LAYOUTS))
    file = directory.find_file(path)
    optional = [key for key in (ids, subjects, partition) if key is not None]
    arrays = read_npz(file, [features, labels, *optional, *columns, *([class_names] if class_names else [])])
    per_record = {key: arrays[key] for key in (features, labels, *optional, *columns)}
    count = check_same_length(file, **per_record)
    if arrays[labels].ndim == 1 and arrays[labels].dtype.kind not in "iu":
        what = f"labels are {arrays[labels].dtype}, not integers from 0"
        raise DataError(what, where=f"{file}: {labels}", hint="convert them to class indices")
    numbers = as_labels(arrays[labels], f"{file}: {labels}")
    if class_names is None:
        names = np.arange(count_classes(numbers, f"{file}: {labels}"))
    elif (names := arrays[class_names]).ndim != 1:
        raise DataError(f"class names have the shape {names.shape}, not a list", where=f"{file}: {class_names}")
    return Records(
        name=file.stem,
        record_ids=arrays[ids] if ids else make_row_ids(count, 6, where=file),
        labels=numbers,
        class_names=tuple(names.astype(np.str_).tolist()),
        features=_features(arrays[features], layout, f"{file}: {features}"),
        subject_ids=None if subjects is None else arrays[subjects],
        partition=None if partition is None else arrays[partition],
        columns={key: arrays[key] for key in columns},
    )
