"""What a method reads: how many records of which set, before it runs. `expunge check` shows it and times it."""

from __future__ import annotations

import dataclasses

from expunge.core.show import repr_fields


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The numbers of records and classes that the cost of a method depends on.

    Attributes:
        retain: records of D_r, after the request.
        forget: records of D_f.
        validation: validation records.
        classes: number of classes.
    """

    retain: int
    forget: int
    validation: int
    classes: int


@dataclasses.dataclass(frozen=True)
class Reads:
    """The records that a method reads, counted with repetition, as `Cost` counts them.

    Attributes:
        retain, forget, other: records of D_r, of D_f, and others (validation records, generated ones) that go forward
            and backward.
        retain_forward, forget_forward, other_forward: those that only go forward.
        at_most: it may read less: it stops early, or something may be stored already.

    Example:
        >>> reads = 2 * Reads(retain=100) + Reads(forget=5)
        >>> reads.trained, reads.forward, reads.passes(100)
        (205, 0, 2.05)
        >>> reads.describe(Sizes(retain=100, forget=5, validation=0, classes=2))
        '2 passes over D_r, 1 over D_f'
    """

    retain: float = 0
    forget: float = 0
    other: float = 0
    retain_forward: float = 0
    forget_forward: float = 0
    other_forward: float = 0
    at_most: bool = False

    __repr__ = repr_fields

    def __add__(self, more: Reads) -> Reads:
        counts = [f.name for f in dataclasses.fields(self) if f.name != "at_most"]
        sums = {name: getattr(self, name) + getattr(more, name) for name in counts}
        return Reads(**sums, at_most=self.at_most or more.at_most)

    def __rmul__(self, factor: float) -> Reads:
        counts = [f.name for f in dataclasses.fields(self) if f.name != "at_most"]
        return Reads(**{name: factor * getattr(self, name) for name in counts}, at_most=self.at_most)

    @property
    def trained(self) -> float:
        """Records that go forward and backward."""
        return self.retain + self.forget + self.other

    @property
    def forward(self) -> float:
        """Records that only go forward."""
        return self.retain_forward + self.forget_forward + self.other_forward

    def passes(self, retain: int) -> float:
        """Passes over D_r, as `Cost.passes` counts them.

        Args:
            retain: number of records of D_r.
        """
        return (self.trained + self.forward / 3) / max(1, retain)

    def describe(self, sizes: Sizes) -> str:
        """In words: passes over each set.

        Args:
            sizes: the numbers of records.
        """
        parts = []
        for names, forward in ((("retain", "forget", "other"), ""), (("retain", "forget", "other"), "_forward")):
            found = []
            for name in names:
                count = getattr(self, name + forward)
                if not count:
                    continue
                whole = getattr(sizes, name, 0)
                place = {"retain": "D_r", "forget": "D_f"}.get(name)
                if place is None:
                    found.append(f"{count:,.0f} other records")
                else:
                    number = count / max(1, whole)
                    word = "" if found and "over" in found[0] else " pass" if number == 1 else " passes"
                    found.append(f"{number:.3g}{word} over {place}")
            if found:
                parts.append(("forward only: " if forward else "") + ", ".join(found))
        return ("at most " if self.at_most else "") + ("; ".join(parts) or "no record")
