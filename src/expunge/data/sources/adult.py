"""The Adult census table: is the income above 50,000 dollars?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from expunge.core.errors import DataError
from expunge.data.data_dir import Place
from expunge.data.official import PARTS, official_ids, official_partition
from expunge.data.readers import one_hot, read_npz, same_length
from expunge.data.records import Records
from expunge.data.registry import register_source

#: How each number comes near [0, 1]: fixed by the meaning of the column, not learned from any record.
SCALES: dict[str, tuple[bool, float]] = {  # (take log(1 + x) first, then divide by)
    "age": (False, 100.0),
    "fnlwgt": (True, 15.0),
    "education-num": (False, 16.0),
    "capital-gain": (True, 12.0),
    "capital-loss": (True, 12.0),
    "hours-per-week": (False, 100.0),
}


def _files(place: Place) -> list[Path]:
    return [place.folder(["adult", "."], holding=["adult.npz"]) / "adult.npz"]


def encode_numbers(values: NDArray[np.float32], names: list[str]) -> NDArray[np.float32]:
    """Numbers by fixed scales (`SCALES`): `x / s`, or `log(1 + x) / s`."""
    columns = []
    for name, column in zip(names, values.T, strict=True):
        logarithm, scale = SCALES[name]
        columns.append((np.log1p(column) if logarithm else column) / scale)
    return np.stack(columns, axis=1).astype(np.float32)


@register_source("adult", files=_files)
def adult(place: Place) -> Records:
    """UCI Adult census income: 32,561 + 16,281 records of 108 numbers, 2 classes, official partition.

    Reads `<data directory>/adult/adult.npz`. The six numbers come first, scaled by constants (`SCALES`) that depend on
    no record: nothing is learned from test rows, and nothing has to be forgotten. The eight categories follow one-hot,
    in the order of the vocabulary that the file ships (`?`, unknown, is a category of its own). Each categorical column
    is also a text column, so that a forget set can be chosen by value.
    """
    (path,) = _files(place)
    arrays = read_npz(path)
    head = [f"{part}_{key}" for part in PARTS for key in ("num", "cat", "labels")]
    missing = [key for key in ("num_columns", "cat_columns", *head) if key not in arrays]
    if missing:
        raise DataError(f"has no array {missing[0]!r}", where=path, hint=f"it holds: {', '.join(sorted(arrays))}")
    numbers, categories = arrays["num_columns"].tolist(), arrays["cat_columns"].tolist()
    strange = [name for name in numbers if name not in SCALES]
    if strange:
        raise DataError(f"has no scale for the column {strange[0]!r}", where=path, hint=f"known: {', '.join(SCALES)}")
    counts = [same_length(path, **{k: arrays[f"{part}_{k}"] for k in ("num", "cat", "labels")}) for part in PARTS]
    values, codes, labels = (np.concatenate([arrays[f"{p}_{k}"] for p in PARTS]) for k in ("num", "cat", "labels"))
    blocks, columns = [encode_numbers(values, numbers)], {}
    for position, name in enumerate(categories):
        vocabulary = arrays.get(f"names_{name}")
        if vocabulary is None or codes[:, position].max() >= len(vocabulary):
            raise DataError(f"the vocabulary of {name!r} is missing or too short", where=path)
        blocks.append(one_hot(codes[:, position], len(vocabulary), where=path))
        columns[name] = vocabulary[codes[:, position]]
    return Records(
        name="adult",
        record_ids=official_ids(*counts),
        labels=labels,
        class_names=("<=50K", ">50K"),
        features=np.concatenate(blocks, axis=1),
        partition=official_partition(*counts),
        columns=columns,
    )
