"""A request to forget named records, or to correct them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from .errors import RequestError
from .hashing import hash_json
from .show import Summary, plural, repr_html, repr_text, shorten, shorten_mapping
from .split import Correction, Ids, Split, as_ids, is_in


@dataclasses.dataclass(frozen=True, eq=False)
class ForgetRequest:
    """A request to forget named records, or, with a correction, to forget their old values and learn the new ones.

    Attributes:
        record_ids: the forget set D_f, sorted, without duplicates.
        selection: how the ids were chosen: `by` (`ids`, `subjects`, `class`, `random`, `column`, `memorised` or
            `correct`) and the options of that selection; JSON values.
        forgotten_class: index of the class if D_f is a whole class; the `legacy` scores then exclude it from the test
            set.
        hold: ids that must stay, for example under a legal hold.
        correction: the new values of these records, which then stay in training; None: the records are removed.

    Raises:
        RequestError: an id is both in `record_ids` and in `hold`; or the correction is for other records.
        DataError: `record_ids` or `hold` is not a list of strings.

    Example:
        >>> request = ForgetRequest(["b", "a", "b"], hold=["c"])
        >>> request.record_ids.tolist(), request.hold.tolist()
        (['a', 'b'], ['c'])
    """

    record_ids: Ids
    selection: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"by": "ids"})
    forgotten_class: int | None = None
    hold: Ids = dataclasses.field(default_factory=lambda: as_ids(()))
    correction: Correction | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "record_ids", as_ids(sorted(set(as_ids(self.record_ids).tolist()))))
        object.__setattr__(self, "hold", as_ids(sorted(set(as_ids(self.hold).tolist()))))
        both = sorted(set(self.record_ids.tolist()) & set(self.hold.tolist()))
        if both:
            more = f" (and {len(both) - 1} more)" if len(both) > 1 else ""
            raise RequestError(f"the record is both in the forget set and on hold{more}", where=both[0])
        if self.correction is not None and self.correction.record_ids.tolist() != self.record_ids.tolist():
            raise RequestError("the correction is not for the records of the request", where="correction")

    @property
    def hash(self) -> str:
        """Hash of the sorted ids, or of the correction; `selection` and `hold` do not enter."""
        return hash_json(self.record_ids.tolist()) if self.correction is None else self.correction.hash

    def apply(self, split: Split) -> Split:
        """Apply the request to a split; see `Split.move_to_forget` and `Split.add_correction`.

        Raises:
            RequestError: an id is not in the retain set, or no record of the retain set would be unchanged.
        """
        after = split.move_to_forget(self.record_ids)
        if self.correction is not None:
            if len(after.retain) == 0:
                raise RequestError(
                    f"the request corrects all {len(self.record_ids)} training records; none would be unchanged",
                    hint="train a new model on the corrected data instead",
                )
            return split.add_correction(self.correction)
        if len(after.retain) == 0:
            raise RequestError(
                f"the request forgets all {len(self.record_ids)} training records; the retain set would be empty",
                hint="a model trained on no records is an untrained model: delete the model instead; if other training "
                "records are gone, say so: adopt(..., gone=...), or split.retain=absent",
            )
        return after

    def is_applied(self, split: Split) -> bool:
        """Whether a model of this split has forgotten the records, or has been corrected.

        Example:
            >>> split = Split(retain=["a", "b"], forget=[], validation=[], test=[], non_members=[])
            >>> request = ForgetRequest(["b"])
            >>> request.is_applied(split), request.is_applied(request.apply(split))
            (False, True)
        """
        if self.correction is None:
            return bool(is_in(self.record_ids, split.forget).all())
        return any(correction.hash == self.correction.hash for correction in split.corrections)

    @property
    def verb(self) -> str:
        """What happens to the records, as a participle: `forgotten` or `corrected`."""
        return "forgotten" if self.correction is None else "corrected"

    def _summarise(self) -> Summary:
        def title() -> str:
            hold = f", {len(self.hold):,} on hold" if len(self.hold) else ""
            how = "" if self.correction is None else f", {self.correction.describe()} corrected"
            return f"{plural(len(self.record_ids), 'record')} by {self._describe_selection()}{how}{hold}"

        facts = {
            "records": lambda: f"{len(self.record_ids):,}",
            "selected by": self._describe_selection,
            "forgotten class": lambda: (
                "none as a whole" if self.forgotten_class is None else shorten(self.forgotten_class)
            ),
            "on hold": lambda: f"{len(self.hold):,}",
        }
        return Summary(title, facts)

    def _describe_selection(self) -> str:
        """How the records were selected; of ids and subjects only the number."""
        options = shorten_mapping({key: value for key, value in self.selection.items() if key != "by"})
        return f"{self.selection.get('by', 'ids')}{f' ({options})' if options else ''}"

    __repr__ = repr_text
    _repr_html_ = repr_html

    def to_json(self) -> dict[str, Any]:
        """Return the value of `request` in `outcome.json` (docs/formats/outcome.md)."""
        return {
            "hash": self.hash,
            "records": len(self.record_ids),
            "selection": dict(self.selection),
            "forgotten_class": self.forgotten_class,
            "record_ids": self.record_ids.tolist(),
            "hold": self.hold.tolist(),
            **({} if self.correction is None else {"correction": self.correction.to_json()}),
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> ForgetRequest:
        """Read the value of `request` in `outcome.json` (docs/formats/outcome.md)."""
        return cls(
            as_ids(body["record_ids"]),
            selection=dict(body["selection"]),
            forgotten_class=body["forgotten_class"],
            hold=as_ids(body.get("hold", ())),
            correction=None if body.get("correction") is None else Correction.from_json(body["correction"]),
        )
