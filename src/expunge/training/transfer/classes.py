"""Records of some classes only, for a source or a target task."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from expunge.core.errors import DataError, unknown_name_hint
from expunge.data.records import Records


def take_classes(records: Records, classes: Sequence[str]) -> Records:
    """The records of some classes, which are numbered from 0 in the given order.

    Args:
        records: records in memory.
        classes: names of classes.

    Raises:
        DataError: a class does not exist or is named twice, or the records are streamed.

    Example:
        >>> import expunge
        >>> from expunge.training.transfer import take_classes
        >>> some = take_classes(expunge.load_records("digits"), ["7", "2"])
        >>> some.class_names, set(some.labels.tolist()), len(some)
        (('7', '2'), {0, 1}, 356)
    """
    if records.features is None:
        raise DataError("classes are taken from records in memory; these are streamed", where=records.name)
    names = list(records.class_names)
    for name in classes:
        if name not in names:
            hint = unknown_name_hint(name, names)
            raise DataError(f"{records.name} has no class {name!r}", where="classes", hint=hint)
    if not classes or len(set(classes)) < len(classes):
        raise DataError("no class is named, or one is named twice", where="classes")
    number = np.full(len(names), -1)
    number[[names.index(name) for name in classes]] = np.arange(len(classes))
    rows = np.flatnonzero(number[records.labels] >= 0)
    return dataclasses.replace(
        records,
        name=f"{records.name} ({', '.join(classes)})",
        record_ids=records.record_ids[rows],
        labels=number[records.labels[rows]],
        class_names=tuple(classes),
        features=records.features[rows],
        subject_ids=None if records.subject_ids is None else records.subject_ids[rows],
        partition=None if records.partition is None else records.partition[rows],
        columns={name: np.asarray(values)[rows] for name, values in records.columns.items()},
    )
