"""The Adult census table: whether a person's income is above 50,000 dollars."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from expunge.core.errors import DataError
from expunge.data.data_dir import DataDir
from expunge.data.reading.readers import (
    OFFICIAL_PARTS,
    check_same_length,
    check_vocabulary,
    make_official_ids,
    make_official_partition,
    one_hot,
    read_npz,
)
from expunge.data.records import Records
from expunge.data.registry import register_source

#: Fixed scales that bring each number near [0, 1]. They follow from the meaning of the column, not from any record.
SCALES: dict[str, tuple[bool, float]] = {  # (take log(1 + x) first, then divide by)
    "age": (False, 100.0),
    "fnlwgt": (True, 15.0),
    "education-num": (False, 16.0),
    "capital-gain": (True, 12.0),
    "capital-loss": (True, 12.0),
    "hours-per-week": (False, 100.0),
}


def _files(directory: DataDir) -> list[Path]:
    return [directory.find_folder(["adult", "."], containing=["adult.npz"]) / "adult.npz"]


def encode_numbers(values: NDArray[np.float32], names: list[str]) -> NDArray[np.float32]:
    """Scale numbers by the fixed scales `SCALES`: `x / s`, or `log(1 + x) / s`."""
    columns = []
    for name, column in zip(names, values.T, strict=True):
        logarithm, scale = SCALES[name]
        columns.append((np.log1p(column) if logarithm else column) / scale)
    return np.stack(columns, axis=1).astype(np.float32)


@register_source("adult", title="Adult census income", files=_files, reads="`adult/adult.npz`")
def adult(directory: DataDir) -> Records:
    """UCI Adult census income: 32,561 + 16,281 records of 108 numbers, 2 classes, official partition;
    string columns.

    Reads `<data directory>/adult/adult.npz`. The six numbers come first, scaled by constants (`SCALES`) that do not
    depend on any record, so they leak no training data. The eight categories follow one-hot, in the order of the
    vocabulary in the file (`?`, unknown, is a separate category). Each categorical column is also a column of strings,
    so that a forget set can be selected by value.
    """
    (path,) = _files(directory)
    arrays = read_npz(path)
    head = [f"{part}_{key}" for part in OFFICIAL_PARTS for key in ("num", "cat", "labels")]
    missing = [key for key in ("num_columns", "cat_columns", *head) if key not in arrays]
    if missing:
        raise DataError(f"has no array {missing[0]!r}", where=path, hint=f"it has: {', '.join(sorted(arrays))}")
    numbers, categories = arrays["num_columns"].tolist(), arrays["cat_columns"].tolist()
    unknown = [name for name in numbers if name not in SCALES]
    if unknown:
        raise DataError(f"has no scale for the column {unknown[0]!r}", where=path, hint=f"known: {', '.join(SCALES)}")
    counts = [
        check_same_length(path, **{k: arrays[f"{part}_{k}"] for k in ("num", "cat", "labels")})
        for part in OFFICIAL_PARTS
    ]
    values, codes, labels = (
        np.concatenate([arrays[f"{p}_{k}"] for p in OFFICIAL_PARTS]) for k in ("num", "cat", "labels")
    )
    blocks, columns = [encode_numbers(values, numbers)], {}
    places = {name: range(index, index + 1) for index, name in enumerate(numbers)}
    end = len(numbers)
    for position, name in enumerate(categories):
        vocabulary = arrays.get(f"names_{name}")
        if vocabulary is None or codes[:, position].max() >= len(vocabulary):
            raise DataError(f"the vocabulary of {name!r} is missing or too short", where=path)
        check_vocabulary(vocabulary, f"values of {name!r}", path)
        blocks.append(one_hot(codes[:, position], len(vocabulary), where=path))
        columns[name] = vocabulary[codes[:, position]]
        places[name] = range(end, end := end + len(vocabulary))
    return Records(
        name="adult",
        record_ids=make_official_ids(*counts),
        labels=labels,
        class_names=("<=50K", ">50K"),
        features=np.concatenate(blocks, axis=1),
        partition=make_official_partition(*counts),
        columns=columns,
        feature_columns=places,
    )
