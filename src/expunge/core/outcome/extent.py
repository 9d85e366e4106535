"""How much of a model changed: of each kind of state, and of the mask."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from expunge.core.show import plural, repr_fields, shorten_names

#: State of which at least so much changed is rewritten, if at least half of each tensor did: training leaves a few
#: entries of any model as they were, by chance or by rounding.
ALMOST_ALL = 0.99


def is_almost_all(counts: Iterable[tuple[int, int]]) -> bool:
    """Whether so many entries changed that the rest can be equal by chance or by rounding.

    Args:
        counts: changed entries and all entries of each tensor.

    Example:
        >>> is_almost_all([(9_960, 10_000), (9, 10)]), is_almost_all([(10_000, 10_000), (0, 10)])
        (True, False)
    """
    counts = list(counts)
    changed, total = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0)
    return changed >= ALMOST_ALL * total and all(2 * part >= whole for part, whole in counts)


@dataclasses.dataclass(frozen=True)
class Extent:
    """How much of one kind of state changed, found by comparing the tensors of the model with the original's.

    Attributes:
        status: `unchanged`, `partly rewritten`, or `rewritten` (at least 99 % of the entries changed and at least half
            of each tensor, or the method computed the state from D_r alone).
        tensors, entries: how many can change: entries that the mask prunes before and after do not count.
        changed_tensors, changed_entries: how many changed; a tensor is counted if one of its entries changed.
        unchanged_names: names of the tensors in which no entry changed.
        names: names of all tensors, for kinds of state that are not known by name (`buffers`).
        from_forget: of running statistics, the fraction of D_f among the records that moved them; None: not known.

    Example:
        >>> Extent("partly rewritten", 14, 3, 50_000, 200).describe()
        'partly rewritten (3 of 14 tensors, 0.4 % of the entries changed)'
    """

    status: str
    tensors: int
    changed_tensors: int
    entries: int
    changed_entries: int
    unchanged_names: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    from_forget: float | None = None

    __repr__ = repr_fields

    @property
    def follows_forget(self) -> bool:
        """Whether most of the records that moved running statistics are of D_f."""
        return self.from_forget is not None and self.from_forget > 0.5

    def describe_source(self) -> str:
        """Which records moved running statistics, if most are of D_f; else empty.

        Example:
            >>> Extent("rewritten", 2, 2, 16, 16, from_forget=1.0).describe_source()
            'moved towards those of D_f: every record that moved them is of D_f'
        """
        if not self.follows_forget:
            return ""
        part = "every record that moved them is of D_f"
        if self.from_forget is not None and self.from_forget < 1:
            part = f"{100 * self.from_forget:.0f} % of the records that moved them are of D_f"
        return f"moved towards those of D_f: {part}"

    def describe(self) -> str:
        """The status in words, with the counts of what is only partly rewritten, and with names."""
        named = shorten_names(self.names) if self.names else ""
        counts = f"{self.changed_tensors} of {plural(self.tensors, 'tensor')}"
        if self.status == "partly rewritten":
            percent = format_percent(self.changed_entries, self.entries)
            named = f"{counts}, {percent} of the entries changed{f': {named}' if named else ''}"
        return f"{self.status} ({named})" if named else self.status

    def to_json(self) -> dict[str, Any]:
        """Return the value of one kind in `state.extent` of `outcome.json`."""
        body = dataclasses.asdict(self)
        if self.from_forget is None:
            del body["from_forget"]
        return {**body, "unchanged_names": list(self.unchanged_names), "names": list(self.names)}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Extent:
        """Read what `to_json` wrote; unknown keys are ignored."""
        known = {field.name for field in dataclasses.fields(cls)}
        values: dict[str, Any] = {
            key: tuple(v) if isinstance(v, list) else v for key, v in body.items() if key in known
        }
        return cls(**values)


def format_percent(part: int, whole: int) -> str:
    """Format a fraction as a percentage of one or two digits that is 0 or 100 only if the fraction is.

    Example:
        >>> format_percent(1, 10**9), format_percent(999_999, 10**6), format_percent(1, 3)
        ('< 0.01 %', '> 99.99 %', '33.3 %')
    """
    percent = 100 * part / whole if whole else 0.0
    if 0 < percent < 0.01:
        return "< 0.01 %"
    if percent > 99.99 and part < whole:
        return "> 99.99 %"
    text = f"{percent:.2f}" if 0 < percent < 0.1 or 99.9 < percent < 100 else f"{percent:.1f}"
    return f"{text.removesuffix('.0')} %"


@dataclasses.dataclass(frozen=True)
class MaskChange:
    """How the mask of one tensor changed. A tensor that a mask does not name keeps all its weights.

    Attributes:
        name: of the tensor.
        weights: its weights.
        before, after: how many the original's mask keeps, and the new one.
        newly_kept: weights that were pruned and are kept.
        newly_pruned: weights that were kept and are pruned.

    Example:
        >>> change = MaskChange("0.weight", weights=100, before=40, after=50, newly_kept=20, newly_pruned=10)
        >>> change.iou
        0.5
    """

    name: str
    weights: int
    before: int
    after: int
    newly_kept: int
    newly_pruned: int

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> MaskChange:
        """Read an entry of `state.mask` in `outcome.json`; unknown keys are ignored."""
        return cls(**{field.name: body[field.name] for field in dataclasses.fields(cls)})

    @property
    def iou(self) -> float:
        """Intersection over union of the kept weights before and after; 1 if both masks keep none."""
        either = self.before + self.newly_kept
        return (self.before - self.newly_pruned) / either if either else 1.0

    def describe(self) -> str:
        """The counts in words.

        Example:
            >>> MaskChange("0.weight", 100, 40, 50, 20, 10).describe()
            '20 weights newly kept, 10 newly pruned, IoU with the mask before 0.500'
        """
        kept = plural(self.newly_kept, "weight")
        return f"{kept} newly kept, {self.newly_pruned:,} newly pruned, IoU with the mask before {self.iou:.3f}"


def sum_mask_changes(changes: Iterable[MaskChange], name: str = "total") -> MaskChange:
    """The sums over tensors, as one change.

    Args:
        changes: of the tensors.
        name: of the sum.
    """
    rows = [dataclasses.astuple(change)[1:] for change in changes]
    return MaskChange(name, *(sum(column) for column in zip(*rows, strict=True)))


def describe_nothing_changed(method: str, tensors: int) -> str:
    """What is said of a method that changed nothing.

    Args:
        method: its name.
        tensors: the number of tensors that were compared.

    Example:
        >>> describe_nothing_changed("FT", 6)
        'FT changed nothing: all 6 tensors of the model are those of the original'
    """
    return f"{method} changed nothing: all {tensors} tensors of the model are those of the original"


def list_changed(rewrote: Iterable[str], recomputed: Iterable[str], partly: Iterable[str]) -> tuple[str, ...]:
    """List the state that a method changed as a whole, from what training on D_f had left: it was not made without D_f.

    Args:
        rewrote: state that changed, or was computed from D_r alone.
        recomputed: the latter.
        partly: state of which some is unchanged.

    Example:
        >>> list_changed(["weights", "mask"], ["mask"], [])
        ('weights',)
    """
    left_out = {*recomputed, *partly}
    return tuple(name for name in rewrote if name not in left_out)
