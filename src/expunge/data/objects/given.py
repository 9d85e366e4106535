"""What a caller gives beside an object: ids, labels, subjects, names; each as values, or as the name of a column."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.core.errors import DataError, join_names, with_article
from expunge.core.show import repr_fields
from expunge.data.items import BLANKS, Caution, as_labels
from expunge.data.reading.readers import count_classes, make_row_ids
from expunge.data.tables.roles import check_listed_once, sort_names

#: Names of the label in items and tables, if the caller gives none.
LABELS = ("labels", "label")


@dataclasses.dataclass(frozen=True)
class Given:
    """The arguments of `Records.from_dataset` after the object.

    Attributes:
        name: name of the records.
        ids, label, subjects: values, the name of a column or key, or None.
        features: names of the columns or keys that are features, or None.
        classes: names of the classes, or None.
        tokenizer: of Hugging Face, or its folder, or None.
        max_length: most tokens of a text.
        cautions: what is already to be said about the records.
    """

    name: str
    ids: Any = None
    label: Any = None
    features: tuple[str, ...] | None = None
    subjects: Any = None
    classes: tuple[str, ...] | None = None
    tokenizer: Any = None
    max_length: int | None = None
    cautions: tuple[Caution, ...] = ()

    __repr__ = repr_fields

    def column(self, role: str) -> str | None:
        """The column or key of a role (`ids`, `label`, `subjects`), if it is given by its name."""
        value = getattr(self, role)
        return value if isinstance(value, str) else None

    def find_label(self, names: Sequence[str]) -> str:
        """The name of the label among columns or keys; "" if the labels are given as values.

        Raises:
            DataError: there is none.
        """
        if self.label is not None and not isinstance(self.label, str):
            return ""
        wanted = LABELS if self.label is None else (self.label,)
        found = [name for name in wanted if name in names]
        if not found:
            hint = f"it has {join_names(list(names))}: name the label, label='...'"
            raise DataError(f"has no {' or '.join(map(repr, wanted))}", where=self.name, hint=hint)
        return found[0]

    def list_taken(self, label: str) -> set[str]:
        """Columns or keys that are no features unless the caller names them: label, ids, subjects.

        If the labels are given as values, the columns that are usually the label are no features either.
        """
        found = {label, self.column("ids"), self.column("subjects"), *(() if label else LABELS)}
        return {name for name in found if name} - set(self.features or ())

    def make_fields(self, count: int, source: Any = None) -> dict[str, Any]:
        """Ids and subjects that are given as values, or as attributes of the source; ids are made if none are given."""
        ids = self.ids if self.ids is not None else getattr(source, "record_ids", None)
        subjects = self.subjects if self.subjects is not None else getattr(source, "subject_ids", None)
        fields: dict[str, Any] = {
            "record_ids": make_row_ids(count, 6, where=self.name) if ids is None else as_list(ids)
        }
        if subjects is not None:
            fields["subject_ids"] = as_list(subjects)
        return fields


def as_list(values: Any) -> Any:
    """Values of a column as numpy makes them: an array, or the list of another sequence."""
    if isinstance(values, np.ndarray):
        return values
    if hasattr(values, "to_numpy"):
        return np.asarray(values.to_numpy())
    if hasattr(values, "detach"):
        return np.asarray(values.detach().cpu())
    if not isinstance(values, Iterable):
        raise DataError(f"these are not values by row, but {with_article(type(values).__name__)}", where="data")
    return list(values)


def make_labels(values: Any, classes: Sequence[str] | None, where: object) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Class indices and the names of the classes.

    Args:
        values: integers, which are the indices; or names of classes, whose order is that of `classes`, else sorted.
        classes: names of the classes, or None.
        where: for messages.

    Raises:
        DataError: a label is missing, or is none of the classes.

    Example:
        >>> make_labels(["no", "yes", "no"], None, "toy")[0].tolist()
        [0, 1, 0]
    """
    listed = as_list(values)
    first = listed[0] if len(listed) else 0
    if not isinstance(first, str):
        labels = as_labels(listed, where)
        if classes is not None:
            return labels, tuple(map(str, classes))
        return labels, tuple(map(str, range(count_classes(labels, where))))
    names = [str(value) if isinstance(value, str) else "" for value in listed]
    blank = [row for row, value in enumerate(names) if not value.strip(BLANKS)]
    if blank:
        raise DataError(
            f"the label of row {blank[0]} is missing or blank", where=where, hint="fill it in, or drop the row"
        )
    known = sort_names(set(names)) if classes is None else check_listed_once(classes, "classes")
    index = {value: number for number, value in enumerate(known)}
    for row, value in enumerate(names):
        if value not in index:
            raise DataError(f"the label {value[:60]!r} of row {row} is not one of {join_names(known)}", where=where)
    return np.asarray([index[value] for value in names], dtype=np.int64), tuple(known)
