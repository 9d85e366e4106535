"""The split: the frozen assignment of record ids to retain, forget, validation and test set and non-member pool.

It also records the corrections of training records: requests that changed their labels or features. A `Planting` is a
change of the data before the original is trained.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import DataError, RequestError
from .files import PathLike, read_json, write_json
from .hashing import hash_json
from .reading.file_names import check_format
from .reading.limits import BYTES, ID_LENGTH
from .show import Summary, plural, repr_html, repr_text, shorten_mapping

SCHEMA = "expunge.split"
SCHEMA_VERSION = 2
PARTS = ("retain", "forget", "validation", "test", "non_members")

#: The kinds of forget sets that change the training data before the original is trained.
PLANTINGS = ("backdoor", "canaries", "look-alikes")

Ids = NDArray[np.str_]


def as_ids(ids: Iterable[str]) -> Ids:
    """Convert record ids to a one-dimensional array of strings.

    Raises:
        DataError: a single string, or not a flat list of strings.
    """
    if isinstance(ids, (str, bytes)) or not isinstance(ids, Iterable):
        raise DataError(f"record ids are a list of strings, not {type(ids).__name__}", where=repr(ids)[:60])
    if isinstance(ids, np.ndarray) and ids.dtype.kind == "U":
        _check_length(ids.dtype.itemsize // 4, ids.size)
        return ids.reshape(-1).copy()
    try:
        items = list(ids)
        _check_length(_longest(items), len(items))
        found = np.asarray(items, dtype=np.str_)
    except (TypeError, ValueError) as error:  # lists of unequal lengths, or bytes that are not text
        raise DataError("record ids are a list of strings; this list has other values", where=repr(ids)[:60]) from error
    if found.ndim != 1:
        raise DataError(
            "record ids are a list of strings, not of lists", where=repr(ids)[:60], hint="concatenate the lists"
        )
    return found


def is_in(ids: Ids, among: Ids) -> NDArray[np.bool_]:
    """Whether each id is among others, as `np.isin`, which sorts both and takes several times as long."""
    if not len(ids) or not len(among):
        return np.zeros(len(ids), np.bool_)
    wanted = set(among.tolist())
    return np.fromiter(map(wanted.__contains__, ids.tolist()), np.bool_, len(ids))


def _longest(items: Sequence[Any]) -> int:
    """Characters of the longest string."""
    try:
        return max(map(len, items), default=0)
    except TypeError:  # numbers among them
        return max((len(item) for item in items if isinstance(item, str)), default=0)


def _check_length(longest: int, count: int) -> None:
    """Raise DataError if an id, or the array, is too large: in an array every id takes the space of the longest."""
    if longest > ID_LENGTH:
        raise DataError(f"a record id has {longest:,} characters; at most {ID_LENGTH:,} are read")
    BYTES.check(4 * longest * count, "the record ids take", where=None, error=DataError)


@dataclasses.dataclass(frozen=True, eq=False)
class Correction:
    """New values of training records: other labels, features that are blanked, or both. The records stay in training.

    Attributes:
        record_ids: the records, sorted, without duplicates.
        labels: their new class indices, in the order of `record_ids`; empty: the labels do not change.
        blank: indices of the features that get the value `fill` in all of these records, ascending.
        fill: the value of blanked features.

    Raises:
        RequestError: there is nothing to change, an id is a duplicate, the numbers of ids and labels differ, a label or
            an index is negative, or `fill` is not finite.

    Example:
        >>> correction = Correction(["r2", "r1"], labels=[0, 5])
        >>> correction.record_ids.tolist(), correction.labels
        (['r1', 'r2'], (5, 0))
    """

    record_ids: Ids
    labels: tuple[int, ...] = ()
    blank: tuple[int, ...] = ()
    fill: float = 0.0

    def __post_init__(self) -> None:
        ids = as_ids(self.record_ids)
        order = np.argsort(ids, kind="stable")
        labels, blank = tuple(map(int, self.labels)), tuple(sorted(set(map(int, self.blank))))
        ids = ids[order]
        duplicates = ids[1:][ids[1:] == ids[:-1]]
        if len(duplicates):
            raise RequestError("the record is named twice in one correction", where=str(duplicates[0]))
        if not labels and not blank:
            raise RequestError("the correction changes nothing: it has neither labels nor features to blank")
        if labels and len(labels) != len(ids):
            raise RequestError(f"{plural(len(labels), 'label')} for {plural(len(ids), 'record')}", where="labels")
        if min((*labels, *blank)) < 0:
            raise RequestError(
                f"{min((*labels, *blank))} is negative", where="labels" if min(labels or (0,)) else "blank"
            )
        if not math.isfinite(self.fill):
            raise RequestError(f"the value of blanked features is {self.fill}", where="fill")
        object.__setattr__(self, "record_ids", ids)
        object.__setattr__(self, "labels", tuple(labels[place] for place in order) if labels else ())
        object.__setattr__(self, "blank", blank)
        object.__setattr__(self, "fill", float(self.fill))

    @functools.cached_property
    def hash(self) -> str:
        """Hash of the ids and the new values."""
        return hash_json(self.to_json())

    def describe(self) -> str:
        """What changes, in a few words."""
        parts = ["labels"] if self.labels else []
        return " and ".join([*parts, *([plural(len(self.blank), "feature")] if self.blank else [])])

    def _summarise(self) -> Summary:
        return Summary(lambda: f"{self.describe()} of {plural(len(self.record_ids), 'record')}")

    __repr__ = repr_text

    def to_json(self) -> dict[str, Any]:
        """Return an item of `corrections` in `split.json` (docs/formats/split.md)."""
        return {
            "record_ids": self.record_ids.tolist(),
            "labels": list(self.labels),
            "blank": list(self.blank),
            "fill": self.fill,
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Correction:
        """Read what `to_json` wrote."""
        return cls(as_ids(body["record_ids"]), body.get("labels", ()), body.get("blank", ()), body.get("fill", 0.0))


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """The assignment of record ids to five disjoint parts. A request moves ids from `retain` to `forget`, or records a
    correction of records in `retain`, which stay there.

    A split is drawn once (`expunge.make_split`), saved and hashed, and never drawn again.

    Attributes:
        retain: D_r, training records that stay.
        forget: D_f, training records that are to be forgotten, or were.
        validation: never trained on; selects models and hyper-parameters.
        test: never trained on; scores are computed on it.
        non_members: the non-member pool, never trained on; membership attacks take their non-members from it.
        origin: how the split was drawn (seed, fractions, grouping); JSON values.
        corrections: in the order of their requests. A model of this split was trained on the corrected values, or has
            been made to forget the old ones (`expunge.data.correct_records`).
        retain_absent: the records of `retain` are declared to be gone: their ids are known, and nothing reads them
            (but those of a request). It is not part of the hashes.

    Raises:
        DataError: a record id is a duplicate, within a part or between two parts.

    Example:
        >>> split = Split(retain=["a", "b"], forget=[], validation=["v"], test=["t"], non_members=["n"])
        >>> after = split.move_to_forget(["b"])
        >>> after.counts()
        {'retain': 1, 'forget': 1, 'validation': 1, 'test': 1, 'non_members': 1}
        >>> after.base_hash == split.base_hash, after.hash == split.hash
        (True, False)
    """

    retain: Ids
    forget: Ids
    validation: Ids
    test: Ids
    non_members: Ids
    origin: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    corrections: tuple[Correction, ...] = ()
    retain_absent: bool = False

    def __post_init__(self) -> None:
        for part in PARTS:
            object.__setattr__(self, part, as_ids(getattr(self, part)))
        together = np.concatenate([getattr(self, part) for part in PARTS])
        if len(set(together.tolist())) < len(together):
            names, counts = np.unique(together, return_counts=True)
            duplicate = str(names[counts > 1][0])
            parts = [part for part in PARTS if duplicate in getattr(self, part)]
            raise DataError(
                f"the record id is a duplicate in the split (in {', '.join(parts)})",
                where=duplicate,
                hint="every record id belongs to exactly one of " + ", ".join(PARTS),
            )

    @property
    def train(self) -> Ids:
        """D, the training records of the original model: retain and forget together, sorted by id."""
        return np.sort(np.concatenate([self.retain, self.forget]))

    @functools.cached_property
    def base_hash(self) -> str:
        """Hash of the assignment to training, validation, test and non-members; no request changes it."""
        parts = {"train": self.train, **{part: getattr(self, part) for part in PARTS[2:]}}
        return hash_json({name: sorted(ids.tolist()) for name, ids in parts.items()})

    @functools.cached_property
    def hash(self) -> str:
        """Hash of the five parts as sets, and of the corrections if there are any; the order of ids does not matter."""
        parts = {part: sorted(getattr(self, part).tolist()) for part in PARTS}
        corrections = {"corrections": [c.hash for c in self.corrections]} if self.corrections else {}
        return hash_json({**parts, **corrections})

    def move_to_forget(self, ids: Iterable[str]) -> Split:
        """Return the split with `ids` moved from retain to forget.

        Raises:
            RequestError: an id is not in the retain set (unknown, never trained on, or already forgotten).
        """
        unique, moved = self.find_in_retain(as_ids(ids))
        return dataclasses.replace(self, retain=self.retain[~moved], forget=np.concatenate([self.forget, unique]))

    def add_correction(self, correction: Correction) -> Split:
        """Return the split with one more correction; its records stay in retain.

        Raises:
            RequestError: a record is not in the retain set (unknown, never trained on, or already forgotten).
        """
        self.find_in_retain(correction.record_ids)
        return dataclasses.replace(self, corrections=(*self.corrections, correction))

    def find_in_retain(self, wanted: Ids) -> tuple[Ids, NDArray[np.bool_]]:
        """The ids without duplicates, and where retain has them; raises RequestError if it lacks one."""
        unique = np.unique(wanted)
        found = is_in(self.retain, unique)
        if int(found.sum()) < len(unique):
            absent = wanted[~is_in(wanted, self.retain)]
            raise self._explain_absence(str(absent[0]), len(absent))
        return unique, found

    def _explain_absence(self, record_id: str, count: int) -> RequestError:
        for part in PARTS[1:]:
            if record_id in getattr(self, part):
                name = "non-member pool" if part == "non_members" else f"{part} set"
                what = (
                    "was forgotten before"
                    if part == "forget"
                    else f"is in the {name}: by the split, it was never trained on"
                )
                break
        else:
            what = "is not a record of this model's training set"
        more = f" (and {count - 1} more like it)" if count > 1 else ""
        some = ", ".join(self.retain[:3].tolist())
        return RequestError(what + more, where=record_id, hint=f"ids of the retain set look like: {some}")

    def counts(self) -> dict[str, int]:
        """Count the records of each part."""
        return {part: len(getattr(self, part)) for part in PARTS}

    def _summarise(self) -> Summary:
        facts = {part: lambda part=part: f"{len(getattr(self, part)):,}" for part in PARTS}
        return Summary(
            self._describe_counts,
            {
                **facts,
                "origin": lambda: shorten_mapping(self.origin) or "not recorded",
                "corrections": lambda: "; ".join(c._summarise().title() for c in self.corrections[-3:]) or "none",
            },
        )

    def _describe_counts(self) -> str:
        return ", ".join(f"{count:,} {part}" for part, count in self.counts().items())

    __repr__ = repr_text
    _repr_html_ = repr_html

    def save(self, path: PathLike) -> None:
        """Write the split as JSON (docs/formats/split.md)."""
        parts = {part: getattr(self, part).tolist() for part in PARTS}
        body = {"hash": self.hash, "base_hash": self.base_hash, "origin": dict(self.origin), **parts}
        if self.corrections:
            body["corrections"] = [correction.to_json() for correction in self.corrections]
        if self.retain_absent:
            body["retain_absent"] = True
        write_json(check_format(path, "JSON"), SCHEMA, SCHEMA_VERSION, body)

    @classmethod
    def load(cls, path: PathLike) -> Split:
        """Read a split and check its hash.

        Raises:
            FileError: the file is missing, damaged, or of another kind or version.
            DataError: a part is missing or is not a list of ids, an id is a duplicate, or the hash does not match.
        """
        body = read_json(path, SCHEMA, SCHEMA_VERSION)
        missing = [part for part in PARTS if part not in body]
        if missing:
            raise DataError(f"the split has no {', '.join(missing)}", where=path)
        if not isinstance(body.get("origin", {}), Mapping):
            raise DataError("is not a mapping", where=f"{path}: origin")
        try:
            corrections = tuple(map(Correction.from_json, body.get("corrections", ())))
        except (AttributeError, DataError, KeyError, RequestError, TypeError, ValueError, OverflowError) as error:
            raise DataError(f"a correction is damaged ({error})", where=f"{path}: corrections") from error
        try:
            parts = {part: as_ids(body[part]) for part in PARTS}
            absent = body.get("retain_absent", False) is True
            split = cls(**parts, origin=body.get("origin", {}), corrections=corrections, retain_absent=absent)
        except DataError as error:
            raise DataError(error.what, where=f"{path}: {error.where}", hint=error.hint) from error
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError("a part of the split is not a list of record ids", where=path) from error
        if split.hash != body.get("hash"):
            raise DataError("the ids do not match the hash in the file: the file was edited", where=path)
        return split


@dataclasses.dataclass(frozen=True, eq=False)
class Planting:
    """What was planted in the training data before the original was trained: the recorded change of the records.

    A planted record has an id of its own, so that an id always means the same features and label.

    Attributes:
        options: `by`, the kind (`backdoor`, `canaries`, `look-alikes`), and all options with their values; JSON values.
        record_ids: the planted records.
        base_ids: the record that each was made from, in the same order.
        forget: the records that a request of this kind forgets.
        replaces: whether a planted record takes the place of its base in training; otherwise both are trained on.

    Raises:
        DataError: the numbers of planted and of base records differ.

    Example:
        >>> planting = Planting({"by": "canaries"}, ["b~canary"], ["b"], ["b~canary"], replaces=True)
        >>> split = Split(retain=["a", "b"], forget=[], validation=[], test=["t"], non_members=[])
        >>> planting.place(split).retain.tolist()
        ['a', 'b~canary']
    """

    options: Mapping[str, Any]
    record_ids: Ids
    base_ids: Ids
    forget: Ids
    replaces: bool

    def __post_init__(self) -> None:
        for name in ("record_ids", "base_ids", "forget"):
            object.__setattr__(self, name, as_ids(getattr(self, name)))
        if len(self.record_ids) != len(self.base_ids):
            raise DataError(f"{len(self.record_ids)} planted records of {len(self.base_ids)} records", where=self.by)

    @property
    def by(self) -> str:
        """The kind."""
        return str(self.options["by"])

    def describe(self) -> dict[str, Any]:
        """What a split and a request record of it: its options, and the number of planted records."""
        return {**self.options, "records": len(self.record_ids)}

    def place(self, split: Split) -> Split:
        """Put the planted records into the retain set, where their bases are.

        Raises:
            DataError: a base is not in the retain set.
        """
        absent = self.base_ids[~is_in(self.base_ids, split.retain)]
        if len(absent):
            raise DataError(
                "a planted record was made from this record, which is not in the retain set", where=str(absent[0]),
                hint="use the split that the records were planted for",
            )  # fmt: skip
        stay = split.retain[~is_in(split.retain, self.base_ids)] if self.replaces else split.retain
        retain = np.sort(np.concatenate([stay, self.record_ids]))
        return dataclasses.replace(split, retain=retain, origin={**split.origin, "planted": self.describe()})

    def _summarise(self) -> Summary:
        return Summary(lambda: f"{plural(len(self.record_ids), 'record')} by {self.by:.40}")

    __repr__ = repr_text
