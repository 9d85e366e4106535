"""Human activity recognition from phone sensors, with the subject of every window."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from expunge.core.errors import DataError
from expunge.data.data_dir import DataDir
from expunge.data.reading.readers import (
    OFFICIAL_PARTS,
    check_same_length,
    make_official_ids,
    make_official_partition,
    read_npz,
)
from expunge.data.records import Records
from expunge.data.registry import register_source

_STEPS, _CHANNELS = 128, 9


def _files(directory: DataDir) -> list[Path]:
    return [directory.find_folder(["har", "."], containing=["har.npz"]) / "har.npz"]


@register_source("har", title="Human Activity Recognition", files=_files, reads="`har/har.npz`")
def har(directory: DataDir) -> Records:
    """UCI Human Activity Recognition: 7,352 + 2,947 records of 9 x 128 float32, 6 classes, official partition,
    subjects.

    Reads `<data directory>/har/har.npz`. A record is a window of 9 channels x 128 time steps; `subject_ids` is the
    person, `1` to `30`. No person is in both parts of the official partition. Successive windows overlap by half (the
    file stores each half-window once), so a random draw would put nearly equal data into training and validation: split
    by `group="subject"`.
    """
    (path,) = _files(directory)
    per_record = [f"{part}_{key}" for part in OFFICIAL_PARTS for key in ("idx", "labels", "subject")]
    keys = ["halves", "class_names", *per_record]
    arrays = read_npz(path, keys)
    halves = arrays["halves"]
    counts = []
    for part in OFFICIAL_PARTS:
        index = arrays[f"{part}_idx"]
        counts.append(
            check_same_length(path, idx=index, labels=arrays[f"{part}_labels"], subject=arrays[f"{part}_subject"])
        )
        if index.ndim != 2 or index.shape[1] != 2 or (len(index) and not 0 <= index.min() <= index.max() < len(halves)):
            raise DataError(f"{part}_idx does not have pairs of half-windows", where=path)
    if halves.ndim != 2 or halves.shape[1] * 2 != _STEPS * _CHANNELS:
        raise DataError(f"half-windows have the shape {halves.shape}, not N x {_STEPS * _CHANNELS // 2}", where=path)
    pairs = np.concatenate([arrays[f"{part}_idx"] for part in OFFICIAL_PARTS])
    windows = halves[pairs].reshape(-1, _STEPS, _CHANNELS)
    return Records(
        name="har",
        record_ids=make_official_ids(*counts),
        labels=np.concatenate([arrays[f"{part}_labels"] for part in OFFICIAL_PARTS]),
        class_names=tuple(str(name) for name in arrays["class_names"]),
        features=np.ascontiguousarray(windows.transpose(0, 2, 1), dtype=np.float32),
        subject_ids=np.concatenate([arrays[f"{part}_subject"] for part in OFFICIAL_PARTS]).astype(np.str_),
        partition=make_official_partition(*counts),
    )
