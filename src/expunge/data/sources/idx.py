"""MNIST and data sets with the same file names, as IDX files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from expunge.core.errors import ConfigError, DataError, unknown_name_hint
from expunge.data.constants import CLASS_NAMES, PUBLISHED
from expunge.data.data_dir import DataDir
from expunge.data.reading.readers import count_classes, make_official_ids, make_official_partition, read_idx
from expunge.data.records import Records
from expunge.data.registry import register_source

_STEMS = (("train-images", 3), ("train-labels", 1), ("t10k-images", 3), ("t10k-labels", 1))


def _names(stem: str, dimensions: int) -> list[str]:
    """The usual names of such a file."""
    return [f"{stem}{dot}idx{dimensions}-ubyte{end}" for dot in "-." for end in ("", ".gz")]


def _files(directory: DataDir, folder: str = ".", variant: str | None = None) -> list[Path]:
    base = directory.find_folder([folder], containing=_names(*_STEMS[0]))
    paths = []
    for stem, dimensions in _STEMS:
        names = _names(stem, dimensions)
        found = [base / name for name in names if (base / name).is_file()]
        if not found:
            raise DataError(f"found none of {', '.join(names)}", where=base)
        paths.append(found[0])
    return paths


def _read_part(images_path: Path, labels_path: Path) -> tuple[np.ndarray, np.ndarray]:
    images, labels = read_idx(images_path), read_idx(labels_path)
    for path, array, dimensions in ((images_path, images, 3), (labels_path, labels, 1)):
        if array.ndim != dimensions or array.dtype != np.uint8:
            raise DataError(f"has {array.dtype} of shape {array.shape}, not {dimensions}-dimensional uint8", where=path)
    if len(images) != len(labels):
        raise DataError(f"{len(images)} images and {len(labels)} labels", where=f"{images_path}, {labels_path}")
    return images, labels


@register_source("idx", files=_files)
def idx(directory: DataDir, folder: str = ".", variant: str | None = None) -> Records:
    """MNIST-family IDX files, plain or .gz: records of 1 x H x W uint8, official partition.

    Reads `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte` and `t10k-labels-idx1-ubyte`
    (also with a dot before `idx`, also `.gz`) in `<data directory>/<folder>`.

    Args:
        directory: the data directory.
        folder: folder below the data directory.
        variant: `mnist` or `fashion-mnist`, for class names and published normalisation statistics; the files do not
            record it.
    """
    if variant is not None and variant not in CLASS_NAMES:
        hint = unknown_name_hint(variant, CLASS_NAMES)
        raise ConfigError(f"unknown variant {variant!r}", where="variant", hint=hint)
    paths = _files(directory, folder)
    train, test = _read_part(paths[0], paths[1]), _read_part(paths[2], paths[3])
    if train[0].shape[1:] != test[0].shape[1:]:
        raise DataError(
            f"test images of {test[0].shape[1:]}, but training images of {train[0].shape[1:]}", where=paths[2]
        )
    labels = np.concatenate([train[1], test[1]])
    numbers = () if variant else tuple(str(i) for i in range(count_classes(labels, paths[1])))
    return Records(
        name=variant or "idx",
        record_ids=make_official_ids(len(train[1]), len(test[1])),
        labels=labels,
        class_names=CLASS_NAMES[variant] if variant else numbers,
        features=np.concatenate([train[0], test[0]])[:, None],
        partition=make_official_partition(len(train[1]), len(test[1])),
        normalisation=PUBLISHED[variant] if variant else None,
    )
