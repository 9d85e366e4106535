"""Several results in one report: which they are, and what the user calls them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from expunge.core.errors import ConfigError, with_article

_OTHERS = "others=[model.forget(rows, method='GA')], or {name: result}"


_R = TypeVar("_R")


def check_result(found: object, kind: type, where: str, hint: str = _OTHERS) -> None:
    """Raise ConfigError if an object is no result of `forget`.

    Args:
        found: the object.
        kind: the class of results.
        where: the argument.
        hint: what to write.
    """
    if not isinstance(found, kind):
        raise ConfigError(f"is {with_article(type(found).__name__)}, not a result of forget", where=where, hint=hint)


def list_results(result: _R, references: Sequence[_R], others: Sequence[_R] | Mapping[str, _R]) -> list[tuple[str, _R]]:
    """The results of a report, each after its name or an empty string: `result` first, the references left out.

    Args:
        result: whose report it is.
        references: the retrained models, which have a name of their own.
        others: further results, in a list or by name.

    Raises:
        ConfigError: one is no result of `forget`, or a name is empty or no string.
    """
    kind = type(result)
    listed: Any = [others] if isinstance(others, kind) else others
    if not isinstance(listed, Mapping | Sequence) or isinstance(listed, str):
        raise ConfigError(f"is {with_article(type(others).__name__)}", where="others", hint=_OTHERS)
    named = isinstance(listed, Mapping)
    found = [("", result)]
    for name, other in listed.items() if isinstance(listed, Mapping) else enumerate(listed):
        check_result(other, kind, f"others[{name!r}]")
        if named and not (isinstance(name, str) and name.strip()):
            raise ConfigError(f"the name {name!r} is not a text", where="others", hint=_OTHERS)
        if not any(other is one for one in (*references, *(one for _, one in found))):
            found.append((str(name) if named else "", other))
    return found
