"""Records from map-style datasets: items are pairs `(features, label)`, or mappings of named inputs with the label."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.core.errors import DataError, ExpungeError, Interrupted, join_names
from expunge.data.fields import InputFields
from expunge.data.items import as_features, as_label
from expunge.data.records import Caution, Records, seed_item_reads
from expunge.data.sources.python import read_labels
from expunge.data.tables.tokens import find_fill, join_lists

from .given import Given, make_labels


class NamedItems:
    """A map-style dataset of pairs, made from one whose items are mappings.

    Args:
        dataset: its items are mappings, or pairs of a mapping and the label.
        names: the keys that are inputs.
        label: the key of the label; "" for the second of a pair, or for labels that are given apart.
        labels: the labels that the items have, if they are given apart.
        fields: the inputs; None for one image, whose key is no argument of the model.
    """

    def __init__(
        self,
        dataset: Any,
        names: tuple[str, ...],
        label: str,
        labels: NDArray[np.int64] | None,
        fields: InputFields | None,
    ) -> None:
        self.dataset, self.names, self.label, self.labels, self.fields = dataset, names, label, labels, fields

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> tuple[Any, Any]:
        item = self.dataset[row]
        label: Any = None
        if not isinstance(item, Mapping):
            item, label = item
        if self.labels is not None:
            label = self.labels[row]
        elif self.label:
            label = item[self.label]
        return self._pack(item), label

    def _pack(self, item: Mapping[str, Any]) -> Any:
        if self.fields is None:
            return item[self.names[0]]
        return self.fields.pack({name: item[name] for name in self.names})


class BatchedItems(NamedItems):
    """A Hugging Face dataset without a transform: its items are also read several at once.

    A transform may draw random numbers, or pad to the longest of its batch, so that its items are read one by one.
    """

    @staticmethod
    def fits(dataset: Any) -> bool:
        """Whether the items of a batch are those that the dataset returns one by one."""
        return _is_hugging_face(dataset) and dataset.format["type"] in (None, "torch", "numpy")

    def read_rows(self, rows: Iterable[int]) -> NDArray[Any] | None:
        """The features of some items, `B x ...`; None: one is damaged, or they differ in shape, so read each."""
        try:
            columns = self.dataset[[int(row) for row in rows]]
            values = zip(*(columns[name] for name in self.names), strict=True)
            found = [as_features(self._pack(dict(zip(self.names, item, strict=True))), "") for item in values]
        except Interrupted:
            raise
        except Exception:  # of any class: the reading of the single items says of which one, and why
            return None
        alike = all(one.shape == found[0].shape and one.dtype == found[0].dtype for one in found)
        return np.stack(found) if alike else None


def records_of_items(dataset: Any, given: Given) -> Records:
    """Records from a map-style dataset.

    Lists of integers (tokens) are read into memory and padded to the longest; other items are streamed.

    Raises:
        DataError: an item cannot be read, or does not have the form of the first one.
    """
    where, count = given.name, len(dataset)
    if not count:
        raise DataError("there are no records", where=where, hint="the dataset has no items")
    first = _read(dataset, 0, where)
    pair = isinstance(first, (tuple, list)) and len(first) == 2 and isinstance(first[0], Mapping)
    if isinstance(first, Mapping) or pair:
        return _records_of_mappings(dataset, given, first[0] if pair else first, pair)
    classes = given.classes if given.classes is not None else _class_names(dataset)
    if given.label is None:
        found: Any = _labels_of_pairs(dataset, where)
        stream = dataset
    else:
        found = given.label
        stream = _Relabelled(dataset, make_labels(found, classes, where)[0])
    labels, names = make_labels(found, classes, where)
    if len(labels) != count:
        raise DataError(f"there are {len(labels)} labels for {count} items", where=where)
    fields = None
    if given.features is not None and len(given.features) == 1 and isinstance(first, (tuple, list)):
        fields = InputFields.infer({given.features[0]: as_features(first[0], where)})
    return Records(
        given.name,
        labels=labels,
        class_names=names,
        stream=stream,
        fields=fields,
        partition=getattr(dataset, "partition", None),
        **given.make_fields(count, dataset),
    )


class _Relabelled:
    """A map-style dataset of features, or pairs, with labels that are given apart."""

    def __init__(self, dataset: Any, labels: NDArray[np.int64]) -> None:
        self.dataset, self.labels = dataset, labels

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> tuple[Any, int]:
        item = self.dataset[row]
        return item[0] if isinstance(item, (tuple, list)) else item, int(self.labels[row])


def _labels_of_pairs(dataset: Any, where: str) -> Any:
    try:
        return read_labels(dataset, where)
    except ExpungeError:
        raise
    except (Exception, SystemExit, GeneratorExit) as error:
        raise DataError(f"the dataset failed: {type(error).__name__}: {error}", where=where) from error


def _class_names(dataset: Any) -> tuple[str, ...] | None:
    """Names of the classes that a dataset has, or the dataset of which it is a `torch.utils.data.Subset`."""
    found = getattr(dataset, "classes", None)
    if found is None and type(dataset).__name__ == "Subset":
        return _class_names(dataset.dataset)
    if isinstance(found, (list, tuple)) and found and all(isinstance(name, str) for name in found):
        return tuple(found)
    return None


def _read(dataset: Any, row: int, where: str) -> Any:
    try:
        with seed_item_reads():
            return dataset[row]
    except (Interrupted, ExpungeError):
        raise
    except (Exception, SystemExit, GeneratorExit) as error:
        text = str(error).strip() or "no message"
        raise DataError(f"the dataset cannot read item {row} ({type(error).__name__}: {text})", where=where) from error


def _is_numbers(value: Any) -> bool:
    """Whether a value can be an input: an array or list of numbers, a tensor, an image."""
    if hasattr(value, "getbands") or hasattr(value, "detach"):
        return True
    if isinstance(value, (str, bytes, Mapping)) or value is None:
        return False
    return np.asarray(value).dtype.kind in "biuf"


def _is_list(value: Any) -> bool:
    """Whether a value is a list of integers, such as tokens."""
    if isinstance(value, (str, bytes, Mapping)) or hasattr(value, "getbands"):
        return False
    array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    return array.ndim == 1 and array.dtype.kind in "iu" and array.dtype != np.uint8


def _records_of_mappings(dataset: Any, given: Given, first: Mapping[str, Any], pair: bool) -> Records:
    where = given.name
    label = "" if pair and given.label is None else given.find_label(list(first))
    used = given.list_taken(label)
    others = [str(name) for name in first if name not in used]
    missing = [name for name in given.features or () if name not in first]
    if missing:
        raise DataError(f"an item has no {missing[0]!r}", where=where, hint=f"it has {join_names(others)}")
    numbers = [name for name in others if _is_numbers(first[name])]
    lists = [name for name in numbers if _is_list(first[name])]
    chosen = tuple(given.features or lists or numbers)
    if not chosen:
        raise DataError("no value of an item is an input", where=where, hint=f"an item has {join_names(others)}")
    cautions: tuple[Caution, ...] = ()
    if given.features is None and len(chosen) < len(others):
        unused = [name for name in others if name not in chosen]
        cautions = (
            Caution(f"values of the items that are not used: {join_names(unused)}", "features=[...] names them"),
        )
    known = _stored_labels(dataset, given, label)
    tokens = all(_is_list(first[name]) for name in chosen)
    columns: dict[str, list[Any]] = {name: [] for name in chosen} if tokens else {}
    read: dict[str, list[Any]] = {role: [] for role in ("ids", "subjects") if given.column(role)}
    labels: list[Any] = []
    if tokens or known is None or read:
        for row in range(len(dataset)):
            item = _read(dataset, row, where)
            body = item[0] if pair else item
            try:
                if known is None:
                    labels.append(item[1] if pair and not label else body[label])
                for name in columns:
                    columns[name].append(np.asarray(body[name]))
                for role in read:
                    read[role].append(str(body[str(given.column(role))]))
            except (KeyError, TypeError, IndexError) as error:
                raise DataError(f"item {row} is not like the first one ({error})", where=where) from error
    classes = given.classes if given.classes is not None else _hf_classes(dataset, label)
    if known is None:
        known = (
            labels if isinstance(labels[0], str) else [as_label(v, f"{where}: item {r}") for r, v in enumerate(labels)]
        )
    numbered, names = make_labels(known, classes, where)
    if len(numbered) != len(dataset):
        raise DataError(f"there are {len(numbered)} labels for {len(dataset)} items", where=where)
    fixed = {
        "labels": numbered, "class_names": names, "cautions": cautions,
        **Given(**{**vars(given), **read}).make_fields(len(dataset), dataset),
    }  # fmt: skip
    if tokens:
        fill = {} if given.tokenizer is None else find_fill(chosen, given.tokenizer)
        found = join_lists(columns, fill, where)
        return Records(given.name, features=found.pack(), fields=found.fields, **fixed)
    apart = numbered if not isinstance(first.get(label), (int, np.integer)) or given.label is not None else None
    fields = None
    if not (len(chosen) == 1 and hasattr(first[chosen[0]], "getbands")):
        fields = InputFields.infer({name: first[name] for name in chosen})
    kind = BatchedItems if BatchedItems.fits(dataset) else NamedItems
    stream = kind(dataset, chosen, label, apart, fields)
    return Records(given.name, stream=stream, fields=fields, **fixed)


def _stored_labels(dataset: Any, given: Given, label: str) -> Any:
    """Labels that need no item to be read: as given, the column of a Hugging Face dataset, `labels` or `targets`."""
    if given.label is not None and not isinstance(given.label, str):
        return given.label
    if label and _is_hugging_face(dataset) and label in dataset.column_names:
        return dataset.with_format(None)[label][:]
    for attribute in ("labels", "targets"):
        found = getattr(dataset, attribute, None)
        if found is not None and hasattr(found, "__len__") and len(found) == len(dataset):
            return found
    return None


def _is_hugging_face(dataset: Any) -> bool:
    return type(dataset).__module__.partition(".")[0] == "datasets"


def _hf_classes(dataset: Any, label: str) -> tuple[str, ...] | None:
    features = getattr(dataset, "features", None)
    feature: Any = features.get(label) if isinstance(features, Mapping) else None
    return tuple(feature.names) if type(feature).__name__ == "ClassLabel" else _class_names(dataset)
