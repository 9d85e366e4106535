"""Look-up by rare bits, for patterns in which most bits have the value of the majority of patterns.

Patterns of records are like that: most units are on for few records, or off for few. A pattern is represented by the
set S of its rare bits. It can match an input if R <= S <= A, where R are the sure rare bits of the input and A adds the
unsure bits. Patterns are sorted by their two rarest bits (prefix filtering, as in set joins [Bayardo2007]_). With units
ordered by rarity, the first bit of a matching S is no later than the first bit of R, and its second bit is no later
than the next bit of R. That leaves few pairs of A, which are all queried.

.. [Bayardo2007] Bayardo, Ma, Srikant: Scaling up all pairs similarity search, WWW 2007.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from expunge.core.show import repr_fields

#: Largest number of elements of A up to the first of R; with more there are too many pairs.
_LONGEST = 32


@dataclasses.dataclass(frozen=True, eq=False)
class RareBitIndex:
    """Patterns, sorted by their two rarest bits.

    Attributes:
        atoms: `n` int64, the units from the most one-sided to the most balanced.
        major: `n` float32, the majority value of each unit.
        table: `(n + 2)^2 + 1` int64, where the patterns of each key begin in `order`. A key is the (first, second) rare
            bit as one number; n and n + 1 stand for missing bits.
        order: patterns in the order of the keys.
    """

    atoms: Tensor
    major: Tensor
    table: Tensor
    order: Tensor

    __repr__ = repr_fields

    @classmethod
    def of(cls, stored: Tensor, atoms: Tensor) -> RareBitIndex:
        """Build the index of patterns `P x L` (0 or 1 in float32) from some of the atoms."""
        fraction = stored[:, atoms].mean(0)
        order = torch.argsort(torch.minimum(fraction, 1 - fraction), stable=True)
        atoms, major = atoms[order], (fraction[order] > 0.5).to(stored.dtype)
        keys = [_first_two_key((part[:, atoms] - major).abs() > 0) for part in stored.split(4096)]
        ranked, order = torch.sort(torch.cat(keys), stable=True)
        every = torch.arange((len(atoms) + 2) ** 2 + 1, device=stored.device)
        return cls(atoms, major, torch.searchsorted(ranked, every), order)

    @property
    def expected(self) -> float:
        """Average number of patterns with the key of a stored pattern."""
        return float(self.table.diff().double().square().sum() / max(1, len(self.order)))

    def query(self, positive: Tensor, sure: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the runs of patterns that may have the sure bits of an input.

        Args:
            positive: `B x L` float32, 1 if the bit is on.
            sure: `B x L` float32, 1 if the bit is sure.

        Returns:
            input, start and length of each run; and the inputs that have too many unsure bits.
        """
        count, n = len(positive), len(self.atoms)
        certain = sure.index_select(1, self.atoms)
        rare = positive.index_select(1, self.atoms).sub_(self.major).abs_().mul_(certain)
        within = torch.ones(count, n + 2, dtype=rare.dtype, device=rare.device)
        torch.add(rare, 1 - certain, out=within[:, :n])
        flat = within.view(-1).bool().nonzero()[:, 0]
        row = flat // (n + 2)
        column = flat - row * (n + 2)
        here = torch.nn.functional.pad(rare, (0, 2)).take(flat).long()
        first = torch.searchsorted(row, torch.arange(count + 1, device=row.device))
        past = here.cumsum(0) - here
        past = past - past.take(first[:-1]).take(row)  # bits of R before this one
        length = torch.zeros(count, dtype=torch.int64, device=row.device).index_add_(0, row, (past == 0).long())
        fits = length <= _LONGEST
        some = ((past < 2) & fits.take(row)).nonzero()[:, 0]
        row, past = row.take(some), past.take(some)
        start = first.take(row)
        many = torch.where(past == 0, some - start, 1)  # all bits before it, or the first of R alone
        start = torch.where(past == 0, start, start + length.take(row) - 1)
        which = torch.repeat_interleave(many)
        other = (start - many.cumsum(0) + many).take(which) + torch.arange(len(which), device=row.device)
        key = column.take(other) * (n + 2) + column.take(some).take(which)
        place = self.table.take(key)
        return row.take(which), place, self.table.take(key + 1) - place, (~fits).nonzero()[:, 0]


def _first_two_key(bits: Tensor) -> Tensor:
    """Return keys `B` int64 of the first two set bits of `B x n`."""
    n = bits.shape[1]
    place = torch.where(bits, torch.arange(n, device=bits.device), n + 2)
    missing = torch.arange(n, n + 2, device=bits.device).expand(len(bits), -1)
    two = torch.cat([place, missing], 1).topk(2, dim=1, largest=False).values.sort(1).values
    return two[:, 0] * (n + 2) + two[:, 1]
