"""What somebody asks to be forgotten."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from .errors import RequestError
from .hashing import hash_json
from .split import Ids, Split, as_ids


@dataclasses.dataclass(frozen=True, eq=False)
class ForgetRequest:
    """Named records to forget.

    Attributes:
        record_ids: the forget set D_f, sorted, without repetition.
        selection: how the ids were chosen: `{"kind": "ids" | "subjects" | "class" | "random" | "column", ...}`.
        forgotten_class: index of the class when D_f is a whole class (it then leaves the legacy test set).
        keep: ids that must stay (a legal hold, say); an id in both is an error.
    """

    record_ids: Ids
    selection: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"kind": "ids"})
    forgotten_class: int | None = None
    keep: Ids = dataclasses.field(default_factory=lambda: as_ids(()))

    def __post_init__(self) -> None:
        object.__setattr__(self, "record_ids", as_ids(sorted(set(as_ids(self.record_ids).tolist()))))
        object.__setattr__(self, "keep", as_ids(sorted(set(as_ids(self.keep).tolist()))))
        both = sorted(set(self.record_ids.tolist()) & set(self.keep.tolist()))
        if both:
            more = f" (and {len(both) - 1} more)" if len(both) > 1 else ""
            raise RequestError(f"the record is to be kept and to be forgotten{more}", where=both[0])

    @property
    def hash(self) -> str:
        """Hash of the ids, which is what the request means."""
        return hash_json(self.record_ids.tolist())

    def apply(self, split: Split) -> Split:
        """The split after this request; see `Split.forgetting`.

        Raises:
            RequestError: an id is not in the retain set, or nothing would be retained.
        """
        after = split.forgetting(self.record_ids)
        if len(after.retain) == 0:
            raise RequestError(
                f"the request forgets all {len(self.record_ids)} training records; the retain set would be empty",
                hint="a model of no records is an untrained one: delete the model instead",
            )
        return after

    def to_json(self) -> dict[str, Any]:
        return {
            "hash": self.hash,
            "records": len(self.record_ids),
            "selection": dict(self.selection),
            "forgotten_class": self.forgotten_class,
            "record_ids": self.record_ids.tolist(),
            "keep": self.keep.tolist(),
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> ForgetRequest:
        """The request of an `outcome.json` (docs/formats/outcome.md)."""
        return cls(
            as_ids(body["record_ids"]),
            selection=dict(body["selection"]),
            forgotten_class=body["forgotten_class"],
            keep=as_ids(body.get("keep", ())),
        )
