"""`Records.from_dataset`: which kind of object it is, and the records of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.core.errors import ConfigError, DataError, join_names, with_article
from expunge.core.reading.limits import BYTES
from expunge.data.fields import InputFields
from expunge.data.reading.readers import check_same_length
from expunge.data.records import Records
from expunge.data.tables.tokens import find_fill, join_lists, load_tokenizer

from .frame_index import read_index
from .frames import as_table, records_of_table
from .given import Given, as_list, make_labels
from .items import records_of_items

_KINDS = "a torch map-style dataset, a TensorDataset, a Hugging Face dataset, a pandas or polars DataFrame, or (X, y)"


def from_dataset(
    data: Any,
    *,
    ids: Any = None,
    label: Any = None,
    features: str | Sequence[str] | None = None,
    subjects: Any = None,
    name: str = "",
    tokenizer: Any = None,
    max_length: int | None = None,
    classes: Sequence[str] | None = None,
) -> Records:
    """Make records from a Python object; see `Records.from_dataset`."""
    chosen = (features,) if isinstance(features, str) else None if features is None else tuple(map(str, features))
    named = tuple(map(str, classes)) if classes is not None else None
    found = load_tokenizer(Path(tokenizer)) if isinstance(tokenizer, (str, Path)) else tokenizer
    given = Given(name or _name(data), ids, label, chosen, subjects, named, found, max_length)
    if isinstance(data, Records):
        raise ConfigError("these are records already", where=given.name)
    given = _use_index(data[0] if isinstance(data, tuple) and len(data) == 2 else data, given)
    if isinstance(data, tuple) and len(data) == 2:
        return _records_of_pair(data[0], data[1], given)
    if hasattr(data, "tensors") and type(data).__name__ == "TensorDataset":
        return _records_of_tensors(data.tensors, given)
    if type(data).__name__ in ("DatasetDict", "IterableDatasetDict"):
        raise ConfigError(
            f"there are several datasets: {join_names(list(data))}", where=given.name, hint="give one: data['train']"
        )
    table = as_table(data, given.name)
    if table is not None:
        return records_of_table(table, given)
    if isinstance(data, Mapping) or type(data).__name__ == "BatchEncoding":
        return _records_of_mapping(dict(data), given)
    if hasattr(data, "__len__") and hasattr(data, "__getitem__") and not isinstance(data, (str, bytes, np.ndarray)):
        return records_of_items(data, given)
    hint = (
        f"it is {_KINDS}; files are read by expunge.load_records"
        if isinstance(data, (str, Path))
        else f"it is {_KINDS}"
    )
    if type(data).__name__ == "DataLoader":
        hint = "give the dataset that it reads: loader.dataset"
    raise ConfigError(f"records cannot be made from {with_article(type(data).__name__)}", where=given.name, hint=hint)


def _use_index(frame: Any, given: Given) -> Given:
    """The index of a pandas DataFrame as record ids, or a caution that it is not used."""
    if type(frame).__module__.partition(".")[0] != "pandas" or type(frame).__name__ != "DataFrame":
        return given
    ids, caution = read_index(frame, with_ids=given.ids is not None)
    given = given if caution is None else dataclasses.replace(given, cautions=(caution,))
    return given if ids is None else dataclasses.replace(given, ids=ids)


def _name(data: Any) -> str:
    kind = type(data).__name__
    return "arrays" if kind in ("tuple", "list", "dict") else kind


def as_features(values: Any, where: object) -> NDArray[Any]:
    """Features in memory: uint8 stays, other integers become int64, and other numbers float32.

    Raises:
        DataError: they are not numbers, or take more memory than the limit.
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if values.is_floating_point() else values
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise DataError(f"features are {array.dtype}, not numbers", where=where)
    if array.ndim < 2:
        raise DataError(f"features have the shape {array.shape}, not N x ...", where=where, hint="X.reshape(-1, 1)")
    wanted: Any = np.uint8 if array.dtype == np.uint8 else np.int64 if array.dtype.kind in "iu" else np.float32
    BYTES.check(array.size * np.dtype(wanted).itemsize, "the features take", where=where, error=DataError)
    return np.ascontiguousarray(array, dtype=wanted)


def _is_reordered(x: Any, y: Any) -> bool:
    """Whether two objects of pandas have the same labels in different orders."""
    if not all(type(one).__module__.partition(".")[0] == "pandas" and hasattr(one, "index") for one in (x, y)):
        return False
    return len(x) == len(y) and not x.index.equals(y.index) and set(x.index) == set(y.index)


def _records_of_pair(x: Any, y: Any, given: Given) -> Records:
    if given.label is not None:
        raise ConfigError("the labels are the second of the pair", where="label")
    if _is_reordered(x, y):
        hint = "y.loc[X.index] puts the labels into the order of the rows"
        raise DataError("the index of y has the labels of that of X in another order", where=given.name, hint=hint)
    table = as_table(x, given.name)
    labelled = Given(**{**vars(given), "label": as_list(y)})
    if table is not None:
        return records_of_table(table, labelled)
    if isinstance(x, Mapping):
        return _records_of_mapping(dict(x), labelled)
    features = as_features(x, given.name)
    labels, names = make_labels(y, given.classes, given.name)
    check_same_length(given.name, features=features, labels=labels)  # type: ignore[arg-type]
    fields = None
    if given.features is not None and len(given.features) == 1:
        fields = InputFields.infer({given.features[0]: features[0]})
    return Records(
        given.name, labels=labels, class_names=names, features=features, fields=fields, **given.make_fields(len(labels))
    )


def _records_of_tensors(tensors: Sequence[Any], given: Given) -> Records:
    if len(tensors) == 2:
        return _records_of_pair(tensors[0], tensors[1], given)
    inputs = tensors if given.label is not None else tensors[:-1]
    if given.features is None or len(given.features) != len(inputs):
        raise ConfigError(
            f"the dataset has {len(tensors)} tensors: the inputs need names, and the last one is the label",
            where="features",
            hint="such as features=['input_ids', 'attention_mask']",
        )
    labels = tensors[-1] if given.label is None else given.label
    columns = dict(zip(given.features, inputs, strict=True))
    return _records_of_mapping(columns, Given(**{**vars(given), "label": as_list(labels)}))


def _records_of_mapping(columns: dict[str, Any], given: Given) -> Records:
    """Records from columns by name: the inputs of the model, and the labels."""
    label = given.find_label(list(columns))
    values = given.label if not label else columns[label]
    labels, names = make_labels(values, given.classes, given.name)
    taken = given.list_taken(label) & set(columns)
    chosen = list(given.features or (name for name in columns if name not in taken))
    missing = [name for name in chosen if name not in columns]
    if missing or not chosen:
        raise DataError(f"there is no column {missing[0]!r}" if missing else "no column is a feature", where=given.name)
    for name in (*chosen, *(column for column in taken if column)):
        if len(columns[name]) != len(labels):
            raise DataError(
                f"{name!r} has {len(columns[name])} rows, and there are {len(labels)} labels", where=given.name
            )
    placed = {
        role: columns[column] if (column := given.column(role)) else getattr(given, role)
        for role in ("ids", "subjects")
    }
    fields_of = Given(**{**vars(given), **placed}).make_fields(len(labels))
    if all(isinstance(columns[name], list) for name in chosen):
        fill = {} if given.tokenizer is None else find_fill(chosen, given.tokenizer)
        tokens = join_lists({name: columns[name] for name in chosen}, fill, given.name)
        packed, fields = tokens.pack(), tokens.fields
    else:
        arrays = {name: as_list(columns[name]) for name in chosen}
        fields = InputFields.infer({name: arrays[name][0] for name in chosen})
        packed = fields.pack_batch(arrays)
    return Records(given.name, labels=labels, class_names=names, features=packed, fields=fields, **fields_of)
