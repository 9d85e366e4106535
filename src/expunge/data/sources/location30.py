"""Location-30: visited places, a common benchmark of membership attacks."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from expunge.data.data_dir import DataDir
from expunge.data.reading.readers import check_same_length, make_row_ids, read_npz
from expunge.data.records import Records
from expunge.data.registry import register_source


def _files(directory: DataDir) -> list[Path]:
    return [directory.find_folder(["location30", "."], containing=["location30.npz"]) / "location30.npz"]


@register_source("location30", title="Location-30", files=_files, reads="`location30/location30.npz`")
def location30(directory: DataDir) -> Records:
    """Location-30 (Shokri et al. 2017): 5,010 records of 446 zeros and ones, 30 classes; no official split.

    Reads `<data directory>/location30/location30.npz`. Features are float32 0.0 or 1.0. Ids: `row-0000`, ...
    """
    (path,) = _files(directory)
    arrays = read_npz(path, ["x", "labels"])
    count = check_same_length(path, **arrays)
    return Records(
        name="location30",
        record_ids=make_row_ids(count, 4, where=path),
        labels=arrays["labels"],
        class_names=tuple(str(i) for i in range(30)),
        features=arrays["x"].astype(np.float32),
    )
