"""Which methods work on a model, why the others do not, and what they cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from expunge.core.errors import ExpungeError, MethodError, unknown_name_hint
from expunge.core.request import ForgetRequest
from expunge.core.show import Summary, plural, repr_fields, repr_html, repr_text
from expunge.core.trained import Trained
from expunge.data.forget_set import forget_class, forget_ids
from expunge.data.records import Records
from expunge.methods import method_names
from expunge.methods.reads import Sizes
from expunge.methods.registry import read_facts

from .prepare import Prepared, prepare
from .rows import keep_present


@dataclasses.dataclass(frozen=True)
class MethodRow:
    """One method, with its default options.

    Attributes:
        name: the registered name.
        usable: whether `forget` would run it.
        reason: why not; or a condition under which it runs; or what is assumed.
        hint: how to make it usable, or empty.
        guarantee: that of its outcome on this model; of a method that is refused, the strongest that it can have.
        cost: what it reads, in words; empty: not known before it runs.
    """

    name: str
    usable: bool
    reason: str = ""
    hint: str = ""
    guarantee: str = ""
    cost: str = ""

    __repr__ = repr_fields


@dataclasses.dataclass(frozen=True)
class MethodTable:
    """All registered methods for one model: iterate over the rows, or take one by its name.

    Attributes:
        rows: in the order of `expunge.method_names()`.
    """

    rows: tuple[MethodRow, ...]

    def __iter__(self) -> Iterator[MethodRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> MethodRow:
        """The row of a method.

        Raises:
            MethodError: there is no such method.
        """
        for row in self.rows:
            if row.name.casefold() == name.casefold():
                return row
        names = [row.name for row in self.rows]
        raise MethodError(f"unknown method {name!r}", hint=unknown_name_hint(name, names))

    @property
    def usable(self) -> tuple[str, ...]:
        """Names of the methods that work."""
        return tuple(row.name for row in self.rows if row.usable)

    def table(self) -> list[dict[str, str]]:
        """The cells: method, whether it works, guarantee, cost, and the reason or condition with its hint."""
        return [
            {
                "method": row.name,
                "works": "yes" if row.usable else "no",
                "guarantee": row.guarantee,
                "cost": row.cost,
                "why": row.reason + (f" ({row.hint})" if row.hint else ""),
            }
            for row in self.rows
        ]

    def text(self) -> str:
        """One line a method, with the reason below it."""
        width = max(len(row.name) for row in self.rows)
        lines = []
        for row in self.rows:
            cost = f", {row.cost}" if row.cost else ""
            works = f"works, {row.guarantee}{cost}" if row.usable else "refused"
            lines.append(f"{row.name:<{width}}  {works}")
            if row.reason:
                lines.append(f"{'':<{width}}    {row.reason}")
            if row.hint:
                lines.append(f"{'':<{width}}    hint: {row.hint}")
        return "\n".join(lines)

    def _summarise(self) -> Summary:
        def title() -> str:
            return f"{len(self.usable)} of {plural(len(self), 'method')} work on this model"

        return Summary(title, lines=True, text=lambda: self.text().split("\n"), table=self.table)

    __repr__ = repr_text
    _repr_html_ = repr_html


def list_methods(trained: Trained, records: Records, request: ForgetRequest | None) -> MethodTable:
    """List every method with its default options, and whether it would run.

    Args:
        trained: the model.
        records: the records.
        request: the request; None: a single record and, for methods that refuse it, a whole class are tried.
    """
    return MethodTable(tuple(_describe(name, trained, records, request) for name in method_names()))


def _describe(name: str, trained: Trained, records: Records, request: ForgetRequest | None) -> MethodRow:
    try:
        prepared, condition = _try(name, trained, records, request)
    except ExpungeError as error:
        where = "" if error.where is None else f"{error.where}: "
        return MethodRow(name, False, f"{where}{error.what}", error.hint or "", read_facts(name)[0])
    reason = "; ".join(text for text in (condition, prepared.assumed) if text)
    guarantee = prepared.method.find_guarantee(prepared.trained)
    return MethodRow(name, True, reason, "", guarantee, describe_reads(prepared, records, request))


def describe_reads(prepared: Prepared, records: Records, request: ForgetRequest | None) -> str:
    """Describe which records a method reads, and how often; empty if it is not known before it runs.

    Args:
        prepared: the method and the model.
        records: the records.
        request: the request; None: one record is assumed to be forgotten.
    """
    split = prepared.trained.split
    forgotten = 1 if request is None or request.correction is not None else len(request.record_ids)
    sizes = Sizes(len(split.retain) - forgotten, forgotten, len(split.validation), records.classes)
    reads = prepared.method.estimate_reads(prepared.trained, sizes)
    if reads is None:
        return ""
    return f"{reads.describe(sizes)} ({reads.passes(sizes.retain):.3g} passes)"


def _try(name: str, trained: Trained, records: Records, request: ForgetRequest | None) -> tuple[Prepared, str]:
    """Prepare a method, and the condition under which that worked."""
    if request is not None:
        return prepare(trained, name, {}, records, request), ""
    single = forget_ids(records, trained.split, keep_present(records, trained.split.retain)[:1])
    try:
        return prepare(trained, name, {}, records, single), ""
    except ExpungeError:
        whole = _choose_class(trained, records)
        if whole is None:
            raise
    return prepare(trained, name, {}, records, whole), "only for a whole class: expunge.forget_class"


def _choose_class(trained: Trained, records: Records) -> ForgetRequest | None:
    """A request for a whole class that leaves others to retain; None if there is one class only."""
    labels = records.labels[records.rows(keep_present(records, trained.split.retain))]
    classes = sorted(set(labels.tolist()))
    return forget_class(records, trained.split, classes[0]) if len(classes) > 1 else None
