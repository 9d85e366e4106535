"""The search space of a method: which values `expunge bench tune` draws for its options. Importing this is light.

A space is a literal in the decorator of the method: option to a list of choices, or to a range `(low, high)` or
`(low, high, "log")`. A range of two integers has integer values.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from expunge.core.errors import MethodError, unknown_name_hint
from expunge.core.registry import METHODS
from expunge.core.show import repr_fields

if TYPE_CHECKING:
    import numpy as np

#: Significant digits of drawn numbers, so that options are readable and exact in JSON and YAML.
DIGITS = 3


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of a few values.

    Attributes:
        values: JSON values.
    """

    values: tuple[Any, ...]

    __repr__ = repr_fields

    def __contains__(self, value: object) -> bool:
        return any(value == known and isinstance(value, bool) == isinstance(known, bool) for known in self.values)

    def draw(self, generator: np.random.Generator) -> Any:
        """Draw a value."""
        return self.values[int(generator.integers(len(self.values)))]

    def to_json(self) -> list[Any]:
        """The space as it is declared."""
        return list(self.values)


@dataclasses.dataclass(frozen=True)
class Range:
    """A number between two others, both included.

    Attributes:
        low, high: the ends.
        log: whether the logarithm of the number is uniform.
        integer: whether it is an integer.
    """

    low: float
    high: float
    log: bool = False
    integer: bool = False

    __repr__ = repr_fields

    def __contains__(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int if self.integer else int | float):
            return False
        return self.low <= value <= self.high

    def draw(self, generator: np.random.Generator) -> float | int:
        """Draw a number, rounded to `DIGITS` significant digits, or to an integer."""
        place = float(generator.random())
        if self.log:
            value = math.exp(math.log(self.low) + place * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + place * (self.high - self.low)
        return self.round(value)

    def round(self, value: float) -> float | int:
        """The nearest value that is drawn: an integer, or a number of `DIGITS` significant digits in the range."""
        if self.integer:
            return min(max(round(value), int(self.low)), int(self.high))
        return min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)

    def to_json(self) -> dict[str, Any]:
        """The space as JSON values."""
        return {"low": self.low, "high": self.high, "log": self.log, "integer": self.integer}


Domain = Choice | Range


def parse_space(method: str, space: Mapping[str, Any]) -> dict[str, Domain]:
    """Return the domains that a decorator declares.

    Args:
        method: the method's name, for messages.
        space: option to its list of choices or its range.

    Raises:
        MethodError: a domain is neither, or its range is empty, or not positive with `log`.

    >>> parse_space("FT", {"epochs": [2, 5, 10], "learning_rate": (0.001, 0.1, "log")})["epochs"].values
    (2, 5, 10)
    >>> 0.01 in parse_space("FT", {"learning_rate": (0.001, 0.1, "log")})["learning_rate"]
    True
    """
    return {option: _parse_domain(f"{method}.{option}", domain) for option, domain in space.items()}


def _parse_domain(where: str, domain: Any) -> Domain:
    hint = "a list of values, or a tuple (low, high) or (low, high, 'log')"
    if isinstance(domain, list) and domain:
        return Choice(tuple(domain))
    if not isinstance(domain, tuple) or not 2 <= len(domain) <= 3 or domain[2:] not in ((), ("log",)):
        raise MethodError(f"{domain!r} is not a search space", where=where, hint=hint)
    low, high = domain[:2]
    if any(isinstance(end, bool) or not isinstance(end, int | float) or not math.isfinite(end) for end in (low, high)):
        raise MethodError("the ends of a range are numbers", where=where, hint=hint)
    log = len(domain) == 3
    if not low < high or (log and low <= 0):
        raise MethodError(f"the range {domain!r} is empty{', or not positive' if log else ''}", where=where, hint=hint)
    return Range(low, high, log, isinstance(low, int) and isinstance(high, int))


def read_space(name: str) -> dict[str, Domain]:
    """The search space of a registered method; empty if it declares none, or not as a literal.

    It is read from source; the method is imported only if it has none.

    Raises:
        MethodError: there is no such method, or its space is not valid.

    >>> sorted(read_space("GA"))
    ['epochs', 'learning_rate']
    """
    definition = METHODS.read_definition(name)
    declared = METHODS.get(name).space if definition is None else definition.facts.get("space")
    return parse_space(name, declared or {})


def describe_domain(domain: Domain) -> str:
    """Describe a domain in words.

    >>> describe_domain(Choice((1, 2, 5))), describe_domain(Range(0.001, 0.1, log=True))
    ('in 1, 2, 5', 'from 0.001 to 0.1 (log)')
    """
    if isinstance(domain, Choice):
        return f"in {', '.join(map(str, domain.values))}"
    return f"from {domain.low:g} to {domain.high:g}{' (log)' if domain.log else ''}"


def check_space(method: str, space: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Check a declared space against the options of its method.

    Args:
        method: the method's name.
        space: see `parse_space`.
        defaults: the defaults of the method's options.

    Raises:
        MethodError: an option is unknown, its domain is not valid or does not contain the default.
    """
    for option, domain in parse_space(method, space).items():
        if option not in defaults:
            hint = unknown_name_hint(option, defaults)
            raise MethodError(f"the search space names an unknown option {option!r}", where=method, hint=hint)
        if defaults[option] not in domain:
            raise MethodError(
                f"the search space of {option} does not contain its default, {defaults[option]!r}", where=method
            )


def draw_options(space: Mapping[str, Domain], seed: int, *labels: object) -> dict[str, Any]:
    """Draw a value for every option of a space; each option has its own stream, so that one more changes no other.

    >>> space = parse_space("FT", {"epochs": [2, 5, 10], "learning_rate": (0.001, 0.1, "log")})
    >>> draw_options(space, 0, "FT", 1) == draw_options(space, 0, "FT", 1)
    True
    """
    from expunge.core.seeds import numpy_generator

    return {option: domain.draw(numpy_generator(seed, "tune", *labels, option)) for option, domain in space.items()}
