"""The frozen assignment of record ids to forget, retain, validation, test and unseen pool."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import DataError, RequestError
from .files import PathLike, read_json, write_json
from .hashing import hash_json
from .reading.limits import BYTES, ID_LENGTH

SCHEMA = "expunge.split"
SCHEMA_VERSION = 1
PARTS = ("retain", "forget", "validation", "test", "unseen")

Ids = NDArray[np.str_]


def as_ids(ids: Iterable[str]) -> Ids:
    """Record ids as a one-dimensional array of text.

    Raises:
        DataError: one text, something that is not a list, or a list of other things than texts.
    """
    if isinstance(ids, (str, bytes)) or not isinstance(ids, Iterable):
        raise DataError(f"record ids are a list of texts, not {type(ids).__name__}", where=repr(ids)[:60])
    if isinstance(ids, np.ndarray) and ids.dtype.kind == "U":
        _check_length(ids.dtype.itemsize // 4, ids.size)
        return ids.reshape(-1).copy()
    try:
        items = list(ids)
        _check_length(_longest(items), len(items))
        found = np.asarray(items, dtype=np.str_)
    except (TypeError, ValueError) as error:  # lists of unequal lengths, or bytes that are no text
        raise DataError("record ids are a list of texts, and this holds other things", where=repr(ids)[:60]) from error
    if found.ndim != 1:
        raise DataError("record ids are a list of texts, not of lists", where=repr(ids)[:60], hint="join the lists")
    return found


def _longest(items: Sequence[Any]) -> int:
    """Characters of the longest string."""
    try:
        return max(map(len, items), default=0)
    except TypeError:  # numbers among them
        return max((len(item) for item in items if isinstance(item, str)), default=0)


def _check_length(longest: int, count: int) -> None:
    """Raise DataError for an id that is too long to be one: in an array every id takes the room of the longest."""
    if longest > ID_LENGTH:
        raise DataError(f"a record id of {longest:,} characters; at most {ID_LENGTH:,} are read")
    BYTES.check(4 * longest * count, "the record ids take", where=None, error=DataError)


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Record ids by part. Made once, saved, hashed, never re-drawn; a request only moves ids from retain to forget.

    Attributes:
        retain: D_r, records in training that stay.
        forget: D_f, records in training that are to be (or were) forgotten.
        validation: never trained on; model and hyper-parameter selection.
        test: never trained on; scores.
        unseen: never trained on; the membership attacks' non-members.
        origin: how the split was drawn (seed, fractions, grouping); JSON values.
    """

    retain: Ids
    forget: Ids
    validation: Ids
    test: Ids
    unseen: Ids
    origin: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for part in PARTS:
            object.__setattr__(self, part, as_ids(getattr(self, part)))
        together = np.concatenate([getattr(self, part) for part in PARTS])
        names, counts = np.unique(together, return_counts=True)
        if (counts > 1).any():
            twice = str(names[counts > 1][0])
            where = [part for part in PARTS if twice in getattr(self, part)]
            raise DataError(
                f"the record stands in more than one place of the split ({', '.join(where)})",
                where=twice,
                hint="every record id belongs to exactly one of " + ", ".join(PARTS),
            )

    @property
    def train(self) -> Ids:
        """D, what the original model was trained on: retain and forget together, sorted by id."""
        return np.sort(np.concatenate([self.retain, self.forget]))

    @functools.cached_property
    def base_hash(self) -> str:
        """Hash of the assignment to train, validation, test and unseen; the same before and after every request."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test, "unseen": self.unseen}
        return hash_json({name: sorted(ids.tolist()) for name, ids in parts.items()})

    @functools.cached_property
    def hash(self) -> str:
        """Hash of all five parts as sets (order does not matter)."""
        return hash_json({part: sorted(getattr(self, part).tolist()) for part in PARTS})

    def forgetting(self, ids: Iterable[str]) -> Split:
        """The split with `ids` moved from retain to forget.

        Raises:
            RequestError: an id is not in the retain set (unknown, never trained on, or already forgotten).
        """
        wanted = as_ids(ids)
        once = np.unique(wanted)
        goes = np.isin(self.retain, once)
        if int(goes.sum()) < len(once):
            absent = wanted[~np.isin(wanted, self.retain)]
            raise self._explain(str(absent[0]), len(absent))
        return dataclasses.replace(self, retain=self.retain[~goes], forget=np.concatenate([self.forget, once]))

    def _explain(self, record_id: str, count: int) -> RequestError:
        for part in PARTS[1:]:
            if record_id in getattr(self, part):
                what = "was forgotten before" if part == "forget" else f"is in the {part} set: it was never trained on"
                break
        else:
            what = "is not a record of this model's training set"
        more = f" (and {count - 1} more like it)" if count > 1 else ""
        some = ", ".join(self.retain[:3].tolist())
        return RequestError(what + more, where=record_id, hint=f"ids of the retain set look like: {some}")

    def counts(self) -> dict[str, int]:
        """Number of records in each part."""
        return {part: len(getattr(self, part)) for part in PARTS}

    def save(self, path: PathLike) -> None:
        """Write the split as JSON (docs/formats/split.md)."""
        parts = {part: getattr(self, part).tolist() for part in PARTS}
        body = {"hash": self.hash, "base_hash": self.base_hash, "origin": dict(self.origin), **parts}
        write_json(path, SCHEMA, SCHEMA_VERSION, body)

    @classmethod
    def load(cls, path: PathLike) -> Split:
        """Read a split; its hash is checked."""
        body = read_json(path, SCHEMA, SCHEMA_VERSION)
        missing = [part for part in PARTS if part not in body]
        if missing:
            raise DataError(f"the split lacks {', '.join(missing)}", where=path)
        try:
            split = cls(**{part: as_ids(body[part]) for part in PARTS}, origin=body.get("origin", {}))
        except DataError as error:
            raise DataError(error.what, where=f"{path}: {error.where}", hint=error.hint) from error
        except (TypeError, ValueError) as error:
            raise DataError("a part of the split is not a list of record ids", where=path) from error
        if split.hash != body.get("hash"):
            raise DataError("the ids do not have the hash that the file records: it was edited", where=path)
        return split
