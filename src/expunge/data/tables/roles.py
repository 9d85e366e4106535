"""The roles of the columns of a table: what each column is for. A column without a role is an error."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence

from expunge.core.errors import ConfigError, join_names, unknown_name_hint
from expunge.core.show import repr_fields


@dataclasses.dataclass(frozen=True)
class Roles:
    """The columns of each role; see `docs/data.md`.

    Attributes:
        label: column of the class; "" if the labels are given apart.
        id, subject, partition: columns of the record id, the subject id and the official partition, or None.
        numeric, categorical: columns that are features.
        text: one column, or two that the tokenizer reads as a pair; then there are no other features.
        boolean, select: columns of truth values, and of strings, that can select a forget set.
        ignore: columns that are not used.
    """

    label: str
    id: str | None = None
    subject: str | None = None
    partition: str | None = None
    numeric: Sequence[str] = ()
    categorical: Sequence[str] = ()
    text: Sequence[str] = ()
    boolean: Sequence[str] = ()
    select: Sequence[str] = ()
    ignore: Sequence[str] = ()

    __repr__ = repr_fields

    def __post_init__(self) -> None:
        for name in ("numeric", "categorical", "text", "boolean", "select", "ignore"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))

    @property
    def single(self) -> dict[str, str]:
        """The columns that must not be blank, by what they are."""
        found = {"label": self.label, "record id": self.id, "subject id": self.subject, "partition": self.partition}
        return {what: column for what, column in found.items() if column}

    def check(self, header: Sequence[str], where: object) -> None:
        """Check that each column has exactly one role, that all named columns exist, and that some are features.

        Raises:
            ConfigError: they do not.
        """
        singles = {
            role: [name]
            for role, name in (("id", self.id), ("subject", self.subject), ("partition", self.partition))
            if name is not None
        }
        lists = {
            name: getattr(self, name) for name in ("numeric", "categorical", "text", "boolean", "select", "ignore")
        }
        check_roles(header, {**({"label": [self.label]} if self.label else {}), **singles, **lists}, where)
        if self.text and (self.numeric or self.categorical):
            raise ConfigError("text and other features cannot be one input", where=where, hint="ignore one of them")
        if len(self.text) > 2:
            raise ConfigError(f"{len(self.text)} columns of text; a tokenizer reads one, or a pair", where="text")
        if not self.numeric and not self.categorical and not self.text:
            hint = "declare numeric or categorical columns, or text"
            raise ConfigError("no column is a feature", where=where, hint=hint)


def check_roles(header: Sequence[str], roles: Mapping[str, Sequence[str]], where: object) -> None:
    """Raise ConfigError unless each column has exactly one role and each role names existing columns."""
    role_of: dict[str, str] = {}
    known = set(header)
    for role, names in roles.items():
        for name in names:
            if name not in known:
                raise ConfigError(f"{where} has no column {name!r}", where=role, hint=unknown_name_hint(name, header))
            if name in role_of:
                raise ConfigError(f"the column {name!r} is both {role_of[name]} and {role}", where=role)
            role_of[name] = role
    rest = [name for name in header if name not in role_of]
    if rest:
        raise ConfigError(
            f"no role is declared for {join_names(list(map(repr, rest)))}",
            where=where,
            hint=f"give each column one of the roles {', '.join(roles)}",
        )


def check_listed_once(values: Sequence[object], option: str) -> list[str]:
    """Return declared values as strings; raise ConfigError for a duplicate: its two places would be one."""
    names = [str(value) for value in values]
    duplicates = [name for name, count in Counter(names).items() if count > 1]
    if duplicates:
        raise ConfigError(f"{duplicates[0][:100]!r} is a duplicate", where=option, hint="list each value once")
    return names


def check_categories(categories: Mapping[str, object] | None, categorical: Sequence[str]) -> None:
    """Raise ConfigError if categories are declared for a column that is not categorical."""
    for name in categories or {}:
        if name not in categorical:
            hint = unknown_name_hint(name, categorical)
            raise ConfigError(f"{name!r} is not a categorical column", where="categories", hint=hint)


def sort_names(names: set[str]) -> list[str]:
    """Sort names: by value if all are integers, else as strings."""
    if all(name.lstrip("-").isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)
