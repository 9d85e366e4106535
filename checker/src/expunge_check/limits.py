"""How much memory and work a check may take, and the refusal of more before anything is allocated or computed."""

from __future__ import annotations

import dataclasses
import math

from .errors import TooLarge

GIB = 2**30
#: The unit of `max_work`.
BILLION = 10**9


@dataclasses.dataclass(frozen=True)
class Limits:
    """What checking one folder may take.

    Attributes:
        memory: bytes of everything that is read, decoded and computed at one time, besides the interpreter and numpy
            themselves (about 100 MB). `--max-memory` gives it in GiB.
        work: multiply-adds of a matrix product; other steps count as the multiply-adds that take as long (a number
            read or written 10, a call of numpy or an operation on fractions 50,000, and more as fractions grow).
            `--max-work` gives it in billions.
    """

    memory: float = 4.0 * GIB
    work: float = 1000.0 * BILLION

    def check_memory(self, needed: float, what: str) -> None:
        """Raise `TooLarge` where `needed` bytes are more than the limit."""
        if not needed <= self.memory:
            raise TooLarge(
                f"{what} would take {_amount(needed / GIB)} GiB of memory, the limit is {_amount(self.memory / GIB)} "
                f"GiB: {_option('--max-memory', needed / GIB)}"
            )

    def check_work(self, needed: float, what: str) -> None:
        """Raise `TooLarge` where `needed` multiply-adds are more than the limit."""
        if not needed <= self.work:
            raise TooLarge(
                f"{what} would take {_amount(needed / BILLION)} billion multiply-adds, the limit is "
                f"{_amount(self.work / BILLION)}: {_option('--max-work', needed / BILLION)}"
            )


def _option(name: str, needed: float) -> str:
    """What would allow it, rounded up to two digits."""
    step = 10.0 ** (math.floor(math.log10(needed)) - 1) if 0 < needed < 1e300 else 0
    return f"raise it by {name} {math.ceil(needed / step) * step:.6g}" if step else f"raise it by {name}"


def _amount(number: float) -> str:
    return f"{number:.3g}"


#: Limits of a check for which none are given.
DEFAULT = Limits()
