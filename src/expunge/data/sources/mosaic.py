"""CIFAR-10, Fashion-MNIST and MNIST as lossless WebP mosaics with a `labels.npz`."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import numpy as np

from expunge.core.errors import DataError
from expunge.data.constants import PUBLISHED
from expunge.data.data_dir import DataDir, require_files
from expunge.data.reading.readers import (
    OFFICIAL_PARTS,
    make_official_ids,
    make_official_partition,
    read_mosaics,
    read_npz,
)
from expunge.data.records import Records
from expunge.data.registry import register_source

LABELS = "labels.npz"


def _mosaics(folder: Path, part: str) -> list[Path]:
    """Find `<part>-0.webp`, `<part>-1.webp`, ... in numerical order, without a gap."""
    found = {int(m[1]): p for p in folder.iterdir() if (m := re.fullmatch(rf"{part}-(\d+)\.webp", p.name))}
    last = max(found, default=0)
    return require_files(
        folder, [f"{part}-{i}.webp" for i in range(last + 1)], "the mosaics are numbered from 0 without a gap"
    )


def _files(folder_name: str, directory: DataDir) -> list[Path]:
    folder = directory.find_folder([folder_name, "."], containing=["train-0.webp"])
    return [
        *require_files(folder, [LABELS], "it belongs in the directory of the mosaics"),
        *(p for s in OFFICIAL_PARTS for p in _mosaics(folder, s)),
    ]


def _load(name: str, folder_name: str, side: int, channels: int, directory: DataDir) -> Records:
    labels_path, *images = _files(folder_name, directory)
    arrays = read_npz(labels_path)
    for key in ("train_labels", "test_labels", "class_names"):
        if key not in arrays:
            raise DataError(f"has no array {key!r}", where=labels_path, hint=f"it has: {', '.join(sorted(arrays))}")
    labels = [arrays[f"{part}_labels"] for part in OFFICIAL_PARTS]
    features = read_mosaics(images, side, channels)
    train, test = (len(part) for part in labels)
    if len(features) != train + test:
        raise DataError(
            f"the mosaics have {len(features)} images, but there are {train} + {test} labels",
            where=labels_path.parent,
            hint="a mosaic is missing, or a file belongs to another data set",
        )
    columns = {}
    if all(f"{part}_exact" in arrays for part in OFFICIAL_PARTS):
        columns["exact"] = np.concatenate([arrays[f"{part}_exact"] for part in OFFICIAL_PARTS])
    return Records(
        name=name,
        record_ids=make_official_ids(train, test),
        labels=np.concatenate(labels),
        class_names=tuple(str(c) for c in arrays["class_names"]),
        features=features,
        partition=make_official_partition(train, test),
        columns=columns,
        normalisation=PUBLISHED[name],
    )


@register_source(
    "cifar10", title="CIFAR-10", files=functools.partial(_files, "cifar10"), reads="`cifar10/`: mosaics, `labels.npz`"
)
def cifar10(directory: DataDir) -> Records:
    """CIFAR-10 from WebP mosaics: 50,000 + 10,000 records of 3 x 32 x 32 uint8, 10 classes, official partition.

    Reads `<data directory>/cifar10/`: `train-0.webp` ..., `test-0.webp`, `labels.npz`. The boolean column `exact` is
    false for images that were restored from JPEG.
    """
    return _load("cifar10", "cifar10", 32, 3, directory)


@register_source(
    "fashion-mnist",
    title="Fashion-MNIST",
    files=functools.partial(_files, "fashion_mnist"),
    reads="`fashion_mnist/`: mosaics, `labels.npz`",
)
def fashion_mnist(directory: DataDir) -> Records:
    """Fashion-MNIST from WebP mosaics: 60,000 + 10,000 records of 1 x 28 x 28 uint8, 10 classes, official partition.

    Reads `<data directory>/fashion_mnist/`: `train-0.webp` ..., `test-0.webp`, `labels.npz`.
    """
    return _load("fashion-mnist", "fashion_mnist", 28, 1, directory)


@register_source(
    "mnist", title="MNIST", files=functools.partial(_files, "mnist"), reads="`mnist/`: mosaics, `labels.npz`"
)
def mnist(directory: DataDir) -> Records:
    """MNIST from WebP mosaics: 60,000 + 10,000 records of 1 x 28 x 28 uint8, 10 classes, official partition.

    Reads `<data directory>/mnist/`: `train-0.webp` ..., `test-0.webp`, `labels.npz`.
    """
    return _load("mnist", "mnist", 28, 1, directory)
