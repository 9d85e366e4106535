"""Limits of memory and work. A check beyond a limit is refused before anything is allocated or computed."""

from __future__ import annotations

import dataclasses
import math

from .errors import TooLarge

GIB = 2**30
#: The unit of `max_work`.
BILLION = 10**9


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of the check of one folder.

    Attributes:
        memory: bytes that are in use at one time, besides the interpreter and numpy (about 100 MB). The unit of
            `--max-memory` is GiB.
        work: multiply-adds of a matrix product. Other steps count as the number of multiply-adds that take as long: 10
            for a number read or written, 50,000 for a call of numpy or an operation on fractions, and more for long
            fractions. The unit of `--max-work` is a billion.
    """

    memory: float = 4.0 * GIB
    work: float = 1000.0 * BILLION

    def check_memory(self, needed: float, what: str) -> None:
        """Raise `TooLarge` if `needed` bytes exceed the limit."""
        if not needed <= self.memory:
            raise TooLarge(
                f"{what} would take {_format(needed / GIB)} GiB of memory, the limit is {_format(self.memory / GIB)} "
                f"GiB: {_suggest_option('--max-memory', needed / GIB)}"
            )

    def check_work(self, needed: float, what: str) -> None:
        """Raise `TooLarge` if `needed` multiply-adds exceed the limit."""
        if not needed <= self.work:
            raise TooLarge(
                f"{what} would take {_format(needed / BILLION)} billion multiply-adds, the limit is "
                f"{_format(self.work / BILLION)}: {_suggest_option('--max-work', needed / BILLION)}"
            )


def _suggest_option(name: str, needed: float) -> str:
    """Return the option that would allow the check, rounded up to two digits."""
    step = 10.0 ** (math.floor(math.log10(needed)) - 1) if 0 < needed < 1e300 else 0
    return f"raise it by {name} {math.ceil(needed / step) * step:.6g}" if step else f"raise it by {name}"


def _format(number: float) -> str:
    return f"{number:.3g}"


#: Default limits.
DEFAULT = Limits()

#: Largest atom and input counts that a file may ask memory for.
LIMIT = 2**31
