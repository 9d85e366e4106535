"""CIFAR-10 and CIFAR-100 as the official binary files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from expunge.core.errors import DataError
from expunge.core.files import read_bytes
from expunge.core.reading.limits import TEXT_BYTES
from expunge.data.constants import PUBLISHED
from expunge.data.data_dir import DataDir, require_files
from expunge.data.reading.readers import (
    check_vocabulary,
    make_official_ids,
    make_official_partition,
    read_binary_records,
)
from expunge.data.records import Records
from expunge.data.registry import register_source

_PIXELS = 3 * 32 * 32
_TRAIN_10 = [f"data_batch_{i}.bin" for i in range(1, 6)]
_HINT = "the file is part of the official archive; unpack it again"


def _files10(directory: DataDir) -> list[Path]:
    folder = directory.find_folder(["cifar-10-batches-bin", "."], containing=_TRAIN_10[:1])
    return require_files(folder, ["batches.meta.txt", *_TRAIN_10, "test_batch.bin"], _HINT)


def _files100(directory: DataDir) -> list[Path]:
    names = ["fine_label_names.txt", "coarse_label_names.txt", "train.bin", "test.bin"]
    folder = directory.find_folder(["cifar-100-binary", "."], containing=names[:1])
    return require_files(folder, names, _HINT)


def _class_names(path: Path) -> tuple[str, ...]:
    try:
        lines = read_bytes(path, TEXT_BYTES, error=DataError).decode("ascii").splitlines()
    except UnicodeDecodeError as error:
        raise DataError("is not a list of class names", where=path, hint=_HINT) from error
    return tuple(line.strip() for line in lines if line.strip())


def _check(labels: np.ndarray, classes: int, path: Path) -> None:
    if labels.max() >= classes:
        raise DataError(
            f"record {int(labels.argmax())} has the label {labels.max()}; there are {classes} classes",
            where=path,
            hint="the file is damaged or of another format",
        )


@register_source("cifar10-binary", title="CIFAR-10", files=_files10, reads="`cifar-10-batches-bin/`")
def cifar10_binary(directory: DataDir) -> Records:
    """CIFAR-10 from the official binary files: 50,000 + 10,000 records of 3 x 32 x 32 uint8, 10 classes, official
    partition.

    Reads `<data directory>/cifar-10-batches-bin/`: `data_batch_1.bin` to `data_batch_5.bin`, `test_batch.bin`,
    `batches.meta.txt`. A record is one label byte and 3,072 pixel bytes. Ids are those of the source `cifar10`.
    """
    meta, *paths = _files10(directory)
    class_names = _class_names(meta)
    parts = [read_binary_records(path, 1 + _PIXELS) for path in paths]
    for part, path in zip(parts, paths, strict=True):
        _check(part[:, 0], len(class_names), path)
    rows, test = np.concatenate(parts), len(parts[-1])
    return Records(
        name="cifar10-binary",
        record_ids=make_official_ids(len(rows) - test, test),
        labels=rows[:, 0].astype(np.int64),
        class_names=class_names,
        features=np.ascontiguousarray(rows[:, 1:]).reshape(-1, 3, 32, 32),
        partition=make_official_partition(len(rows) - test, test),
        normalisation=PUBLISHED["cifar10"],
    )


@register_source("cifar100-binary", title="CIFAR-100", files=_files100, reads="`cifar-100-binary/`")
def cifar100_binary(directory: DataDir) -> Records:
    """CIFAR-100 from the official binary files: 50,000 + 10,000 records of 3 x 32 x 32 uint8, 100 classes, official
    partition; string column `superclass`.

    Reads `<data directory>/cifar-100-binary/`: `train.bin`, `test.bin`, `fine_label_names.txt` and
    `coarse_label_names.txt`. A record is a coarse label, a fine label and 3,072 pixel bytes. The string column
    `superclass` is the name of the coarse label.
    """
    fine_path, coarse_path, train_path, test_path = _files100(directory)
    fine, coarse = _class_names(fine_path), _class_names(coarse_path)
    check_vocabulary(coarse, "superclasses", coarse_path)
    train, test = (read_binary_records(path, 2 + _PIXELS) for path in (train_path, test_path))
    for part, path in ((train, train_path), (test, test_path)):
        _check(part[:, 0], len(coarse), path)
        _check(part[:, 1], len(fine), path)
    rows = np.concatenate([train, test])
    return Records(
        name="cifar100-binary",
        record_ids=make_official_ids(len(train), len(test)),
        labels=rows[:, 1].astype(np.int64),
        class_names=fine,
        features=np.ascontiguousarray(rows[:, 2:]).reshape(-1, 3, 32, 32),
        partition=make_official_partition(len(train), len(test)),
        columns={"superclass": np.asarray(coarse)[rows[:, 0]]},
        normalisation=PUBLISHED["cifar100"],
    )
