"""Records with corrected values, and the check that a correction can be made and changes something."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.core.errors import RequestError
from expunge.core.request import ForgetRequest
from expunge.core.show import plural
from expunge.core.split import Correction, Split
from expunge.data.records import MapDataset, Records

#: The last corrected copy of records: a run needs the same one several times.
_LAST: weakref.WeakKeyDictionary[Records, tuple[tuple[str, ...], Records]] = weakref.WeakKeyDictionary()


class CorrectedStream:
    """A map-style dataset in which the labels of some items are replaced.

    Args:
        dataset: the dataset.
        labels: the new labels by row.
    """

    def __init__(self, dataset: MapDataset, labels: dict[int, int]) -> None:
        self.dataset, self.labels = dataset, labels

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def read_rows(self) -> Any:
        """Reads the features of several items at once, if the dataset does; a correction of labels leaves them."""
        return getattr(self.dataset, "read_rows", None)

    @property
    def features_hash(self) -> str | None:
        """The hash of the features, if the dataset knows it."""
        return getattr(self.dataset, "features_hash", None)

    @property
    def content_hash(self) -> str | None:
        """The hash of the contents, if the dataset has one."""
        return getattr(self.dataset, "content_hash", None)

    def __getitem__(self, index: int) -> Any:
        item = self.dataset[index]
        if int(index) not in self.labels:
            return item
        features, _ = item
        return features, self.labels[int(index)]


def replace_labels(
    records: Records, labels: NDArray[np.int64], *, class_names: tuple[str, ...] | None = None
) -> Records:
    """Return the records with other labels; of a stream, the items that change have them too.

    Args:
        records: the records.
        labels: `N` class indices.
        class_names: of the new labels; None: those of the records.

    Example:
        >>> features = np.ones((3, 2), dtype=np.float32)
        >>> records = Records("visits", ["r0", "r1", "r2"], [0, 1, 0], ("a", "b"), features)
        >>> replace_labels(records, np.array([0, 0, 1])).labels.tolist()
        [0, 0, 1]
    """
    stream = records.stream
    if stream is not None:
        changed = np.flatnonzero(labels != records.labels)
        stream = CorrectedStream(stream, dict(zip(changed.tolist(), labels[changed].tolist(), strict=True)))
    return dataclasses.replace(records, labels=labels, stream=stream, class_names=class_names or records.class_names)


def correct_records(records: Records, corrections: Sequence[Correction]) -> Records:
    """Return the records with the corrected labels and features; the records themselves if there is no correction.

    Args:
        records: the records as their source has them.
        corrections: for example those of a split; later ones win.

    Raises:
        DataError: a record is unknown.
        RequestError: a label or a feature does not exist, or the records have no columns that could be blanked.

    Example:
        >>> features = np.ones((3, 2), dtype=np.float32)
        >>> records = Records("visits", ["r0", "r1", "r2"], [0, 1, 0], ("a", "b"), features)
        >>> corrected = correct_records(records, [Correction(["r1"], labels=[0], blank=[1])])
        >>> corrected.labels.tolist(), corrected.features[1].tolist(), records.features[1].tolist()
        ([0, 0, 0], [1.0, 0.0], [1.0, 1.0])
    """
    if not corrections:
        return records
    key = tuple(correction.hash for correction in corrections)
    known = _LAST.get(records)
    if known is None or known[0] != key:
        known = key, _correct(records, corrections)
        _LAST[records] = known
    return known[1]


def _correct(records: Records, corrections: Sequence[Correction]) -> Records:
    labels, features, stream = records.labels.copy(), records.features, records.stream
    relabelled: dict[int, int] = {}
    for correction in corrections:
        check_values(records, correction)
        rows = records.rows(correction.record_ids)
        if correction.labels:
            labels[rows] = correction.labels
            relabelled.update(zip(rows.tolist(), correction.labels, strict=True))
        if correction.blank:
            assert features is not None
            features = features.copy() if features is records.features else features
            features[np.ix_(rows, np.asarray(correction.blank))] = correction.fill
    if stream is not None:
        stream = CorrectedStream(stream, relabelled)
    return dataclasses.replace(records, labels=labels, features=features, stream=stream)


def check_values(records: Records, correction: Correction) -> None:
    """Raise RequestError if a correction has a label or a feature that the records do not have."""
    for record_id, label in zip(correction.record_ids.tolist(), correction.labels, strict=False):
        if label >= records.classes:
            raise RequestError(
                f"the new label {label} is not one of the {records.classes} classes",
                where=record_id,
                hint=f"classes are numbered from 0 to {records.classes - 1}",
            )
    if not correction.blank:
        return
    check_is_table(records)
    if max(correction.blank) >= records.input_shape[0]:
        raise RequestError(
            f"{records.name} has no feature {max(correction.blank)}",
            where="blank",
            hint=f"features are numbered from 0 to {records.input_shape[0] - 1}",
        )


def check_is_table(records: Records) -> None:
    """Raise RequestError unless the records are a table, in which a column can be blanked."""
    if records.features is None:
        raise RequestError("the records are streamed: only their labels can be corrected", where=records.name)
    if len(records.input_shape) != 1 or records.features.dtype != np.float32:
        shape = " x ".join(map(str, records.input_shape))
        raise RequestError(
            f"columns can be blanked in tables only; these records have the shape {shape} ({records.features.dtype})",
            where=records.name,
            hint="a pixel is not a column: remove the records instead, or correct their labels",
        )


def find_changed(records: Records, split: Split, correction: Correction) -> NDArray[np.bool_]:
    """Whether each record of a correction would change, compared with the values that a model of the split has seen."""
    before = correct_records(records, split.corrections)
    rows = before.rows(correction.record_ids)
    changed = np.zeros(len(rows), dtype=bool)
    if correction.labels:
        changed |= before.labels[rows] != np.asarray(correction.labels)
    if correction.blank:
        assert before.features is not None
        values = before.features[np.ix_(rows, np.asarray(correction.blank))]
        changed |= (values != np.float32(correction.fill)).any(axis=1)
    return changed


def check_correction(records: Records, split: Split, correction: Correction) -> None:
    """Check a correction of a model, whoever made it.

    Args:
        records: as their source has them.
        split: of the model.
        correction: the new values.

    Raises:
        RequestError: a label or a feature does not exist, a record is not in the retain set, or nothing would change.
    """
    check_values(records, correction)
    split.add_correction(correction)
    if not find_changed(records, split, correction).any():
        raise RequestError(
            "the correction changes nothing: these values are already in all of "
            f"{plural(len(correction.record_ids), 'record')}",
            where=str(correction.record_ids[0]),
            hint="leave out what is right already",
        )


def get_values_before(records: Records, split: Split, request: ForgetRequest) -> Records:
    """The records with the values that the request is about: those of the split without the request's own correction.

    Args:
        records: as their source has them.
        split: of the model before or after the request.
        request: the request.
    """
    own = None if request.correction is None else request.correction.hash
    return correct_records(records, [correction for correction in split.corrections if correction.hash != own])


def get_values_after(records: Records, split: Split, request: ForgetRequest) -> Records:
    """The records with the values that a model has to learn: those of the split after the request."""
    before = get_values_before(records, split, request)
    return before if request.correction is None else correct_records(before, [request.correction])
