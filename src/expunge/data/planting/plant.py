"""Plant records: add them to `Records`, remove them again, and choose the kind by name."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.core.errors import ConfigError, DataError, RequestError, unknown_name_hint
from expunge.core.request import ForgetRequest
from expunge.core.split import Planting, Split
from expunge.data.records import MapDataset, Records
from expunge.data.requests import IdsOrFile, build_request

from .draw import check_unplanted


class PlantedStream:
    """A map-style dataset with further items: features of earlier items, with labels of their own.

    Args:
        dataset: the dataset.
        rows: for each further item, the row that its features are from.
        labels: the labels of the further items.
    """

    def __init__(self, dataset: MapDataset, rows: NDArray[np.int64], labels: NDArray[np.int64]) -> None:
        self.dataset, self.rows, self.labels = dataset, rows, labels

    def __len__(self) -> int:
        return len(self.dataset) + len(self.rows)

    def __getitem__(self, index: int) -> Any:
        further = int(index) - len(self.dataset)
        if further < 0:
            return self.dataset[index]
        features, _ = self.dataset[int(self.rows[further])]
        return features, int(self.labels[further])


def add_planted(
    records: Records,
    planting: Planting,
    *,
    labels: NDArray[np.int64] | None = None,
    features: NDArray[Any] | None = None,
) -> Records:
    """Add planted records after the others.

    Args:
        records: the records that the planting was made from.
        planting: its description.
        labels: the labels of the planted records; None: those of their bases.
        features: the features of the planted records; None: those of their bases.

    Raises:
        DataError: the records have a planting already, an id exists already, or features of a stream would change.
    """
    check_unplanted(records)
    rows = records.rows(planting.base_ids)
    labels = records.labels[rows] if labels is None else labels
    stream = records.stream
    if stream is not None:
        if features is not None:
            raise DataError(
                f"features of streamed records cannot be changed by {planting.by}", where=records.name,
                hint="use a source that reads the records into memory",
            )  # fmt: skip
        stream = PlantedStream(stream, rows, labels)
    assert records.features is not None or features is None

    def extend(values: NDArray[Any] | None, further: NDArray[Any] | None = None) -> Any:
        if values is None:
            return None
        return np.concatenate([values, values[rows] if further is None else further])

    return dataclasses.replace(
        records,
        record_ids=np.concatenate([records.record_ids, planting.record_ids]),
        labels=np.concatenate([records.labels, labels]),
        features=extend(records.features, features),
        stream=stream,
        subject_ids=extend(records.subject_ids),
        partition=extend(records.partition),
        columns={name: extend(np.asarray(values)) for name, values in records.columns.items()},
        planted=planting,
    )


def remove_planted(records: Records) -> Records:
    """The records as they were before the planting; arrays are views. Without a planting, the records themselves.

    Args:
        records: with or without a planting.

    Example:
        >>> import expunge
        >>> from expunge.data import plant_canaries
        >>> records = expunge.load_records("digits")
        >>> split = expunge.make_split(records, seed=0)
        >>> planted = plant_canaries(records, split, count=3)
        >>> len(planted) - len(records), remove_planted(planted).hash == records.hash
        (3, True)
    """
    if records.planted is None:
        return records
    count = len(records) - len(records.planted.record_ids)

    def cut(values: NDArray[Any] | None) -> Any:
        return None if values is None else values[:count]

    stream = records.stream
    return dataclasses.replace(
        records,
        record_ids=cut(records.record_ids),
        labels=cut(records.labels),
        features=cut(records.features),
        stream=stream.dataset if isinstance(stream, PlantedStream) else stream,
        subject_ids=cut(records.subject_ids),
        partition=cut(records.partition),
        columns={name: cut(np.asarray(values)) for name, values in records.columns.items()},
        planted=None,
    )


def forget_planted(records: Records, split: Split, *, hold: IdsOrFile = ()) -> ForgetRequest:
    """Forget what a planting is about: its poisoned records or canaries; of look-alikes, the records they resemble.

    Args:
        records: with a planting (`plant_backdoor`, `plant_canaries`, `plant_look_alikes`).
        split: of these records; `make_split` puts the planted records into the retain set.
        hold: ids that must stay, or the path of a file of them.

    Raises:
        RequestError: nothing was planted, or a record is not in the retain set.

    Example:
        >>> import expunge
        >>> from expunge.data import forget_planted, plant_canaries
        >>> records = expunge.load_records("digits")
        >>> planted = plant_canaries(records, expunge.make_split(records, seed=0), count=3, seed=1)
        >>> request = forget_planted(planted, expunge.make_split(planted, seed=0))
        >>> len(request.record_ids), request.selection["by"], request.selection["records"]
        (3, 'canaries', 3)
    """
    if records.planted is None:
        raise RequestError("nothing was planted in these records", where=records.name, hint="docs/scenarios.md")
    return build_request(records, split, records.planted.forget, records.planted.describe(), hold=hold)


def check_planting(by: str, given: Mapping[str, Any]) -> None:
    """Check the values of the options of a planting before there are records.

    Args:
        by: the kind.
        given: the options that are not None; their names were checked.

    Raises:
        ConfigError: a value has the wrong type or is out of range.
    """
    for key, (kind, lowest, what) in _VALUES.items():
        value = given.get(key)
        if value is None:
            continue
        wrong = isinstance(value, bool) or not isinstance(value, kind)
        wrong = wrong or (isinstance(value, float) and not math.isfinite(value))
        if wrong or (lowest is not None and value < lowest):
            raise ConfigError(f"is {str(value)[:60]!r}, not {what}", where=key)
    if not 0 <= given.get("fraction", 0) <= 1:
        raise ConfigError(f"is {given['fraction']}, not between 0 and 1", where="fraction")
    change = given.get("change", "noise")
    if by == "look-alikes" and change not in CHANGES:
        raise ConfigError(
            f"unknown change {str(change)[:60]!r}", where="change", hint=unknown_name_hint(str(change), CHANGES)
        )
    for key, wanted in (("distance", "noise"), ("pixels", "shift")):
        if key in given and change != wanted:
            raise ConfigError(f"only the change {wanted} has this option", where=key, hint=f"change: {wanted}")


#: How look-alikes differ from the records that they were made from.
CHANGES = ("noise", "shift")
#: Types and lowest values of options; 0 copies is the control without look-alikes.
_VALUES: dict[str, tuple[Any, float | None, str]] = {
    "count": (int, 0, "an integer of 0 or more"),
    "seed": (int, None, "an integer"),
    "fraction": ((int, float), 0, "a number"),
    "size": (int, 1, "an integer of 1 or more"),
    "row": (int, None, "an integer"),
    "column": (int, None, "an integer"),
    "fill": ((int, float), None, "a number"),
    "target": ((int, str), None, "the name or the index of a class"),
    "copies": (int, 0, "an integer of 0 or more"),
    "distance": ((int, float), 0, "a number above 0"),
    "pixels": (int, 1, "an integer of 1 or more"),
}
