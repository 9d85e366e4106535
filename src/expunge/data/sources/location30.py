"""Location-30: who visits what, the usual benchmark of membership attacks."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from expunge.data.data_dir import Place
from expunge.data.readers import numbered_ids, read_npz, same_length
from expunge.data.records import Records
from expunge.data.registry import register_source


def _files(place: Place) -> list[Path]:
    return [place.folder(["location30", "."], holding=["location30.npz"]) / "location30.npz"]


@register_source("location30", files=_files)
def location30(place: Place) -> Records:
    """Location-30 (Shokri et al. 2017): 5,010 records of 446 zeros and ones, 30 classes; no official split.

    Reads `<data directory>/location30/location30.npz`. Features are float32 0.0 or 1.0. Ids: `row-0000`, ...
    """
    (path,) = _files(place)
    arrays = read_npz(path, ["x", "labels"])
    count = same_length(path, **arrays)
    return Records(
        name="location30",
        record_ids=numbered_ids(count, 4, where=path),
        labels=arrays["labels"],
        class_names=tuple(str(i) for i in range(30)),
        features=arrays["x"].astype(np.float32),
    )
