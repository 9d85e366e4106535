"""Records: features, labels and stable ids, in memory or streamed."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from expunge.core.errors import DataError
from expunge.core.hashing import hash_array, hash_json
from expunge.core.reading.limits import CLASSES
from expunge.core.seeds import record_keys
from expunge.core.show import Summary, plural, repr_fields, repr_html, repr_text, shorten_names, show_shape
from expunge.core.split import Ids, Planting

from .fields import InputFields
from .items import BLANKS, Caution, as_labels, as_names, check_features, hint_labels, read_item, seed_item_reads

#: Names as a caller may give them.
Names = Sequence[str] | Ids
#: Records whose subjects `repr` counts.
_COUNTED = 200_000


class MapDataset(Protocol):
    """A PyTorch map-style dataset: `dataset[i]` is `(features, label)`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


@dataclasses.dataclass(frozen=True)
class Normalisation:
    """Normalisation statistics, one number for each channel (axis 1 of a batch); the model applies (x - mean) / std.

    Attributes:
        mean, std: `C` numbers each, in the units of the model's input (images: [0, 1]).
        origin: `published`, or `training records`: computed from them, so the statistics can leak training data.

    Example:
        >>> Normalisation(mean=(0.1307,), std=(0.3081,)).origin
        'published'
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    origin: str = "published"

    __repr__ = repr_fields


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
    """A set of records.

    Attributes:
        name: name of the source.
        record_ids: `N` unique strings that are equal each time the records are loaded.
        labels: `N` int64 class indices.
        class_names: `K` strings.
        features: `N x ...` uint8 (images, 0..255; the model's input is x / 255), float32, or int64 (tokens); None if
            streamed.
        stream: a map-style dataset for records that do not fit in memory; its items are `(features, label)`. If it has
            a method `read_rows`, that reads the features of several items at once, as one array (None: it cannot).
        subject_ids: `N` strings, the subject (a person, for example) of each record, or None.
        partition: `N` strings, `train` or `test`, the official split of the source, or None.
        columns: further columns by name, `N` values each; they can select a forget set.
        feature_columns: of tables, the features that each named column of the source became (several if it is one-hot):
            what a correction can blank by name. They are not part of the hash.
        planted: what was planted in these records (docs/scenarios.md), or None; the hash covers the planted records.
        normalisation: published normalisation statistics, or None.
        cautions: what the source noticed while it read; `expunge.data.find_cautions` adds what can be seen in the
            records. They are not part of the hash.
        fields: the named inputs of the model that `features` or the items of `stream` store as one array, or None.

    Raises:
        DataError: lengths differ or there are no records; an id or the name of a class is a duplicate; an id, a subject
            or the name of a class is blank or missing; a label is not an integer or out of range; a feature is NaN or
            infinite; the features are not those that `fields` describes.

    Example:
        >>> features = np.zeros((3, 2), dtype=np.float32)
        >>> records = Records("toy", ["r0", "r1", "r2"], [0, 1, 1], ("no", "yes"), features)
        >>> len(records), records.classes, records.input_shape, records.rows(["r2", "r0"]).tolist()
        (3, 2, (2,), [2, 0])
    """

    name: str
    record_ids: Ids
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    features: NDArray[Any] | None = None
    stream: MapDataset | None = None
    subject_ids: Ids | None = None
    partition: Ids | None = None
    columns: Mapping[str, NDArray[Any]] = dataclasses.field(default_factory=dict)
    normalisation: Normalisation | None = None
    cautions: tuple[Caution, ...] = ()
    feature_columns: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)
    fields: InputFields | None = None
    planted: Planting | None = None

    if TYPE_CHECKING:  # sequences are converted: for type checkers, the arguments are wider than the attributes

        def __init__(
            self, name: str, record_ids: Names, labels: Sequence[int] | NDArray[Any], class_names: Sequence[str],
            features: NDArray[Any] | None = None, stream: MapDataset | None = None, subject_ids: Names | None = None,
            partition: Names | None = None, columns: Mapping[str, NDArray[Any]] = ...,
            normalisation: Normalisation | None = None, cautions: tuple[Caution, ...] = (),
            feature_columns: Mapping[str, Sequence[int]] = ..., fields: InputFields | None = None,
            planted: Planting | None = None,
        ) -> None: ...  # fmt: skip

    def __post_init__(self) -> None:
        object.__setattr__(self, "record_ids", as_names(self.record_ids, "record id", self.name))
        object.__setattr__(self, "labels", as_labels(self.labels, self.name))
        count = len(self.record_ids)
        if (self.features is None) == (self.stream is None):
            raise DataError("records have either features in memory or a stream", where=self.name)
        items = len(self.features) if self.features is not None else len(self.stream)  # type: ignore[arg-type]
        lengths = {"labels": len(self.labels), "features": items}
        for name in ("subject_ids", "partition"):
            if getattr(self, name) is not None:
                what = name.removesuffix("_ids").replace("subject", "subject id")
                object.__setattr__(self, name, as_names(getattr(self, name), what, self.name))
                lengths[name] = len(getattr(self, name))
        lengths.update({f"column {name}": len(values) for name, values in self.columns.items()})
        for name, length in lengths.items():
            if length != count:
                raise DataError(f"{length} {name} for {count} record ids", where=self.name)
        if self.classes > CLASSES:
            raise DataError(f"{self.classes:,} classes; at most {CLASSES:,} are read", where=self.name)
        if count == 0:
            raise DataError("there are no records", where=self.name, hint="the file has no rows, or none was selected")
        self._check_class_names()
        self._check_values()

    def _check_class_names(self) -> None:
        object.__setattr__(self, "class_names", tuple(map(str, self.class_names)))
        first: dict[str, int] = {}
        for index, name in enumerate(self.class_names):
            if not name.strip(BLANKS):
                raise DataError(f"class {index} has no name", where=self.name, hint="give each class its own name")
            if name in first:
                raise DataError(
                    f"classes {first[name]} and {index} have the same name, {name[:100]!r}",
                    where=self.name,
                    hint="a class to forget is chosen by its name: give each class its own name",
                )
            first[name] = index

    def _check_values(self) -> None:
        if len(set(self.record_ids.tolist())) < len(self.record_ids):
            names, counts = np.unique(self.record_ids, return_counts=True)
            raise DataError("the record id is a duplicate", where=f"{self.name}: {names[counts > 1][0]}")
        if len(self.labels) and (self.labels.min() < 0 or self.labels.max() >= self.classes):
            row = int(np.flatnonzero((self.labels < 0) | (self.labels >= self.classes))[0])
            raise DataError(
                f"label {self.labels[row]} is not one of the {self.classes} classes",
                where=f"{self.name}: {self.record_ids[row]}",
                hint=hint_labels(self.labels, self.class_names),
            )
        if self.features is None:
            return
        if self.features.dtype not in (np.uint8, np.float32, np.int64):
            raise DataError(f"features are uint8, float32 or int64, not {self.features.dtype}", where=self.name)
        self._check_fields(self.features[0])
        if self.features.dtype == np.float32:
            finite = np.isfinite(self.features).reshape(len(self), -1).all(axis=1)
            if not finite.all():
                bad = str(self.record_ids[~finite][0])
                raise DataError(
                    f"NaN or infinite values in {plural(int((~finite).sum()), 'record')}",
                    where=f"{self.name}: {bad}",
                    hint="impute or drop these records first; no method can learn or forget from NaN",
                )

    def _check_fields(self, first: NDArray[Any]) -> None:
        fields = self.fields
        if fields is not None and (first.shape, str(first.dtype)) != (fields.input_shape, fields.dtype):
            raise DataError(
                f"a record is {first.dtype} {first.shape}, its fields are {fields.dtype} {fields.input_shape}",
                where=self.name,
                hint="InputFields.pack makes the array of a record",
            )

    @classmethod
    def from_dataset(
        cls, data: Any, *, ids: Any = None, label: Any = None, features: str | Sequence[str] | None = None,
        subjects: Any = None, name: str = "", tokenizer: Any = None, max_length: int | None = None,
        classes: Sequence[str] | None = None,
    ) -> Records:  # fmt: skip
        """Make records from a Python object; row i of the records is item or row i of the object.

        Args:
            data: a torch map-style dataset of pairs or mappings, a `TensorDataset`, a Hugging Face dataset, a pandas or
                polars DataFrame, an Arrow table, arrays `(X, y)`, or columns by name.
            ids: `N` record ids, or the column of them; default `row-000000`, ..., and then the order must never change.
            label: the column of the labels (default `labels` or `label`), or `N` labels: class names, or integers.
            features: the columns or keys that are inputs; the default is all others, if it is clear what they are.
            subjects: `N` subject ids, or the column of them.
            name: name of the records.
            tokenizer: of Hugging Face, or the folder of one, for text.
            max_length: most tokens of a text.
            classes: names of the classes, in the order of the labels.

        Raises:
            ConfigError: it is no such object, or it is not clear what the features are.
            DataError: values are missing or have another form.

        Example:
            >>> records = Records.from_dataset((np.eye(3, dtype=np.float32), ["no", "yes", "no"]))
            >>> records.class_names, records.labels.tolist(), records.record_ids.tolist()
            (('no', 'yes'), [0, 1, 0], ['row-000000', 'row-000001', 'row-000002'])
        """
        # By name, not by an import statement: the module makes records.
        make = importlib.import_module(f"{__package__}.objects.from_dataset").from_dataset
        found: Records = make(
            data, ids=ids, label=label, features=features, subjects=subjects, name=name, tokenizer=tokenizer,
            max_length=max_length, classes=classes,
        )  # fmt: skip
        return found

    def __len__(self) -> int:
        return len(self.record_ids)

    @property
    def classes(self) -> int:
        """Number of classes K."""
        return len(self.class_names)

    @functools.cached_property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one record in the model's input (`C x H x W`, `C x T` or `F`)."""
        if self.features is not None:
            return tuple(self.features.shape[1:])
        return self._first_item.shape

    @property
    def dtype(self) -> str:
        """Type of the features of a record: `uint8`, `float32` or `int64`."""
        return str((self.features if self.features is not None else self._first_item).dtype)

    @functools.cached_property
    def _first_item(self) -> NDArray[Any]:
        """The features of the first item of a stream."""
        with seed_item_reads():
            first = read_item(self.stream, 0, self._name_row(0))[0]
        self._check_fields(first)
        return first

    def _name_row(self, row: int) -> str:
        return f"{self.name}: {self.record_ids[row]}"

    def read_features(self, row: int) -> NDArray[Any]:
        """Read the features of one record, uint8, float32 or int64. Of a stream, the item is read and checked.

        Raises:
            DataError: the dataset cannot read the item, or the item is not `(features, label)`, has another shape or
                type than the first record or another label than `labels`, or has NaN or infinite values.
        """
        if self.features is not None:
            row_features: NDArray[Any] = self.features[row]
            return row_features
        where = self._name_row(row)
        features, label = read_item(self.stream, row, where)
        if label != self.labels[row]:
            raise DataError(
                f"the item has the label {label}, but `labels` or `targets` of the dataset has {self.labels[row]}",
                where=where,
                hint="a transform of the target may apply to items only; give the dataset `labels` after the transform",
            )
        return check_features(features, self._first_item, where)

    def read_batch(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Read the features of some records, `B x ...`; a stream with `read_rows` reads them at once.

        Raises:
            DataError: see `read_features`.
        """
        if self.features is not None:
            return self.features[rows]
        read_rows = getattr(self.stream, "read_rows", None)
        features: NDArray[Any] | None = None if read_rows is None or not len(rows) else read_rows(rows)
        if features is None:
            return np.stack([self.read_features(row) for row in np.asarray(rows).tolist()])
        check_features(
            features[0], self._first_item, self._name_row(int(rows[0]))
        )  # the others have its shape and type
        if features.dtype == np.float32 and not bool(np.isfinite(features).all()):
            bad = ~np.isfinite(features).reshape(len(features), -1).all(axis=1)
            raise DataError(
                "the record has NaN or infinite values", where=self._name_row(int(np.asarray(rows)[bad][0]))
            )
        return features

    @functools.cached_property
    def keys(self) -> NDArray[np.uint64]:
        """The `N` 64-bit keys of the record ids (`expunge.core.seeds.record_keys`), computed once."""
        return record_keys(self.record_ids)

    @functools.cached_property
    def _row_of(self) -> dict[str, int]:
        return {record_id: row for row, record_id in enumerate(self.record_ids.tolist())}

    def rows(self, ids: Iterable[str]) -> NDArray[np.int64]:
        """Find the row numbers of record ids, in the given order.

        Raises:
            DataError: an id is unknown.
        """
        table = self._row_of
        try:
            return np.asarray([table[str(i)] for i in ids], dtype=np.int64)
        except KeyError as error:
            raise DataError(
                "no such record",
                where=f"{self.name}: {error.args[0]}",
                hint=f"ids of this source look like: {', '.join(self.record_ids[:3].tolist())}",
            ) from error

    def _summarise(self) -> Summary:
        facts = {
            "records": lambda: f"{len(self):,}, {self._describe_storage()}",
            "classes": self._describe_classes,
            "subjects": lambda: self._describe_subjects() or "not recorded",
            "partition": self._describe_partition,
            "columns": lambda: shorten_names(self.columns),
            "normalisation": lambda: "none" if self.normalisation is None else self.normalisation.origin,
        }
        if self.planted is not None:
            facts["planted"] = self.planted._summarise().title
        return Summary(self._describe, facts)

    def _describe(self) -> str:
        """One line; reads no item of a stream."""
        subjects = self._describe_subjects()
        parts = (
            plural(len(self), "record"),
            self._describe_storage(),
            f"{self.classes:,} class{'' if self.classes == 1 else 'es'}",
        )
        return f"{self.name:.60}, {', '.join(parts)}{f', {subjects}' if subjects else ''}"

    def _describe_storage(self) -> str:
        if self.features is None:
            return "streamed"
        return f"{show_shape(self.features.shape[1:])} {self.features.dtype} in memory"

    def _describe_classes(self) -> str:
        counts = np.bincount(self.labels, minlength=self.classes)
        return f"{self.classes:,}, with {counts.min():,} to {counts.max():,} records each"

    def _describe_subjects(self) -> str:
        """The number of subjects; a large set is not searched for it."""
        if self.subject_ids is None:
            return ""
        return plural(len(set(self.subject_ids.tolist())), "subject") if len(self) <= _COUNTED else "subjects recorded"

    def _describe_partition(self) -> str:
        if self.partition is None:
            return "none"
        return ", ".join(f"{int((self.partition == part).sum()):,} {part}" for part in ("train", "test"))

    __repr__ = repr_text
    _repr_html_ = repr_html

    @functools.cached_property
    def hash(self) -> str:
        """Hash of ids, class names, labels, subject ids, fields and features.

        Of a stream it has the hash of the features if the stream knows it (`features_hash`), else that of its contents
        (`content_hash`), else neither.
        """
        body: dict[str, Any] = {"ids": hash_array(self.record_ids), "classes": list(self.class_names)}
        body["labels"] = hash_array(self.labels)
        if self.subject_ids is not None:
            body["subjects"] = hash_array(self.subject_ids)
        if self.features is not None:
            body["features"] = hash_array(self.features)
        for name, attribute in (("features", "features_hash"), ("content", "content_hash")):
            known = getattr(self.stream, attribute, None)
            if known is not None:
                body[name] = known
        if self.fields is not None:
            body["fields"] = self.fields.to_json()
        return hash_json(body)
