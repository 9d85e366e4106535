"""A stand-in retain set: declared records (public, or generated) that methods read where those of D_r are gone."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.core.errors import DataError, RequestError
from expunge.core.request import ForgetRequest
from expunge.core.show import plural, repr_fields
from expunge.core.split import Ids, Split, as_ids
from expunge.data.records import Records, seed_item_reads

#: Before the ids of stand-in records, so that they are no record ids of the training data.
PREFIX = "stand-in:"


@dataclasses.dataclass(frozen=True, eq=False)
class StandIn:
    """Records that stand in for D_r.

    Attributes:
        records: the records that are left, and those of the stand-in after them.
        record_ids: the ids of the stand-in's records there.
        source: name of their source.
        options: options of the source.
        hash: hash of the records of the source.
        excluded: records of the source that are left out, because their class is forgotten as a whole.
    """

    records: Records
    record_ids: Ids
    source: str
    options: Mapping[str, Any]
    hash: str
    excluded: int = 0

    __repr__ = repr_fields

    def to_json(self) -> dict[str, Any]:
        """The value of `retain.stand_in` in outcome.json (docs/formats/outcome.md)."""
        return {
            "source": self.source,
            "options": dict(self.options),
            "records": len(self.record_ids),
            "excluded": self.excluded,
            "hash": self.hash,
        }


class _Joined:
    """The records of two sets as one map-style dataset: one of them is streamed."""

    def __init__(self, parts: Sequence[Records], rows: Sequence[NDArray[np.int64]], labels: NDArray[np.int64]) -> None:
        self.parts = parts
        self.places = [(number, int(row)) for number, chosen in enumerate(rows) for row in chosen]
        self.labels = labels

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        number, row = self.places[index]
        return self.parts[number].read_features(row), int(self.labels[index])


def join_stand_in(
    records: Records,
    stand_in: Records,
    request: ForgetRequest,
    split: Split,
    *,
    source: str = "",
    options: Mapping[str, Any] | None = None,
) -> StandIn:
    """Join the records that are left with a stand-in for D_r.

    The labels of the stand-in are those of the classes of the same names. If a whole class is forgotten, its records in
    the stand-in are left out: D_r has none.

    Args:
        records: the records that are left: those of D_f, and usually of validation and test.
        stand_in: the records of the stand-in.
        request: the records to forget.
        split: the split before the request.
        source: name of the source of the stand-in, for the outcome; default: that of its records.
        options: options of the source, for the outcome.

    Raises:
        DataError: shape, type or classes of the stand-in are not those of the records, or no record of it is left.
        RequestError: a record of it is an exact copy of a forgotten one.

    Example:
        >>> features = np.arange(8, dtype=np.float32).reshape(4, 2)
        >>> left = Records("left", ["a", "b"], [0, 1], ("no", "yes"), features[:2])
        >>> public = Records("public", ["p", "q"], [0, 0], ("yes", "no"), features[2:])
        >>> split = Split(retain=["a", "gone"], forget=[], validation=[], test=["b"], non_members=[])
        >>> found = join_stand_in(left, public, ForgetRequest(["a"]), split)
        >>> found.record_ids.tolist(), found.records.labels.tolist()
        (['stand-in:p', 'stand-in:q'], [0, 1, 1, 1])
    """
    where = f"stand-in {stand_in.name}"
    _check_shapes(records, stand_in, where)
    number = {name: index for index, name in enumerate(records.class_names)}
    unknown = [name for name in stand_in.class_names if name not in number]
    used = np.unique(stand_in.labels)
    unknown = [name for index, name in enumerate(stand_in.class_names) if name in unknown and index in used]
    if unknown:
        raise DataError(
            f"it has a class {unknown[0]!r} that the records do not have",
            where=where,
            hint=f"classes are compared by name: {', '.join(records.class_names[:8])}",
        )
    labels = np.asarray([number.get(name, -1) for name in stand_in.class_names], dtype=np.int64)[stand_in.labels]
    rows = np.arange(len(stand_in))
    if request.forgotten_class is not None:
        rows = rows[labels != request.forgotten_class]
        if not len(rows):
            raise DataError("it has no record of another class than the forgotten one", where=where)
    _check_copies(records, stand_in, rows, request, split, where)
    ids = as_ids([PREFIX + name for name in stand_in.record_ids[rows].tolist()])
    joined_labels = np.concatenate([records.labels, labels[rows]])
    features = stream = None
    if records.features is not None and stand_in.features is not None:
        features = np.concatenate([records.features, stand_in.features[rows]])
    else:
        stream = _Joined((records, stand_in), (np.arange(len(records)), rows), joined_labels)
    subjects = None
    if records.subject_ids is not None:  # a stand-in record is of no known subject
        subjects = as_ids([*records.subject_ids.tolist(), *ids.tolist()])
    joined = dataclasses.replace(
        records,
        record_ids=as_ids([*records.record_ids.tolist(), *ids.tolist()]),
        labels=joined_labels,
        features=features,
        stream=stream,
        subject_ids=subjects,
        partition=None,
        columns={},
    )
    excluded = len(stand_in) - len(rows)
    return StandIn(joined, ids, source or stand_in.name, dict(options or {}), stand_in.hash, excluded)


def _check_shapes(records: Records, stand_in: Records, where: str) -> None:
    if stand_in.input_shape != records.input_shape:
        raise DataError(
            f"its records have the shape {stand_in.input_shape}, those of the model {records.input_shape}",
            where=where,
            hint="prepare both alike",
        )
    with seed_item_reads():
        found, wanted = (one.read_features(0).dtype for one in (stand_in, records))
    if found != wanted:
        raise DataError(
            f"its records are {found}, those of the model {wanted}",
            where=where,
            hint="uint8 images are divided by 255, other types are not: prepare both alike",
        )


def _check_copies(
    records: Records, stand_in: Records, rows: NDArray[np.int64], request: ForgetRequest, split: Split, where: str
) -> None:
    """Raise RequestError if a row of the stand-in has the features of a record of D_f, or of an earlier request."""
    forgotten = np.concatenate([request.record_ids, split.forget])
    forgotten = forgotten[np.isin(forgotten, records.record_ids)]
    digests = {_digest(records, row): str(name) for name, row in zip(forgotten, records.rows(forgotten), strict=True)}
    copies = [(int(row), digests[found]) for row in rows if (found := _digest(stand_in, int(row))) in digests]
    if copies:
        row, _ = copies[0]
        raise RequestError(
            f"{plural(len(copies), 'record')} of it {'is an exact copy' if len(copies) == 1 else 'are exact copies'} "
            "of records that are to be forgotten",
            where=f"{where}: {stand_in.record_ids[row]}",
            hint="a model that is trained on them keeps them: remove them from the stand-in",
        )


def _digest(records: Records, row: int) -> bytes:
    with seed_item_reads():
        values = np.ascontiguousarray(records.read_features(row))
    return hashlib.sha256(str(values.dtype).encode() + values.tobytes()).digest()
