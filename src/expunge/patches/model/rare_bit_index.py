"""Look-ups by rare bits: for patterns of which most bits have the value that most patterns have.

Patterns of records are like that: a unit is on for few of them, or off for few. A pattern is then the set S of its rare
bits, and what it shares with an input whose sure bits are known is R <= S <= A, with R the sure rare bits of the input
and A those and the unsure ones. Patterns are sorted by their two rarest bits (prefix filtering, as in joins of sets
[Bayardo2007]_). With units in the order of their rarity, the first bit of such an S is no later than the first bit of
R, and its second bit no later than the next bit of R after that: few pairs of A, all of which are looked up.

.. [Bayardo2007] Bayardo, Ma, Srikant: Scaling up all pairs similarity search, WWW 2007.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

#: Elements of A up to the first of R: with more there are too many pairs.
_LONGEST = 32


@dataclasses.dataclass(frozen=True, eq=False)
class RareBitIndex:
    """Patterns by their two rarest bits.

    Attributes:
        atoms: `n` int64, the units from the one-sided to the even.
        major: `n` float32, the value that most patterns have.
        table: `(n + 2)^2 + 1` int64: where the patterns of each key begin in `order`. A key is (first, second) rare bit
            as one number; n and n + 1 stand for bits that are lacking.
        order: patterns by key.
    """

    atoms: Tensor
    major: Tensor
    table: Tensor
    order: Tensor

    @classmethod
    def of(cls, stored: Tensor, atoms: Tensor) -> RareBitIndex:
        """Of patterns `P x L` (0 or 1 in float32), by some of the atoms."""
        share = stored[:, atoms].mean(0)
        order = torch.argsort(torch.minimum(share, 1 - share), stable=True)
        atoms, major = atoms[order], (share[order] > 0.5).to(stored.dtype)
        keys = [_two_first((part[:, atoms] - major).abs() > 0) for part in stored.split(4096)]
        ranked, order = torch.sort(torch.cat(keys), stable=True)
        every = torch.arange((len(atoms) + 2) ** 2 + 1, device=stored.device)
        return cls(atoms, major, torch.searchsorted(ranked, every), order)

    @property
    def expected(self) -> float:
        """How many patterns have the key of one of them, on average."""
        return float(self.table.diff().double().square().sum() / max(1, len(self.order)))

    def query(self, positive: Tensor, sure: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Runs of patterns that may share an input's sure bits.

        Args:
            positive: `B x L` float32, 1 where the bit is on.
            sure: `B x L` float32, 1 where it is sure.

        Returns:
            of each run the input, the place and the length; and inputs that have too many unsure bits.
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
        many = torch.where(past == 0, some - start, 1)  # every one before it; or the first of R alone
        start = torch.where(past == 0, start, start + length.take(row) - 1)
        which = torch.repeat_interleave(many)
        other = (start - many.cumsum(0) + many).take(which) + torch.arange(len(which), device=row.device)
        key = column.take(other) * (n + 2) + column.take(some).take(which)
        place = self.table.take(key)
        return row.take(which), place, self.table.take(key + 1) - place, (~fits).nonzero()[:, 0]


def _two_first(bits: Tensor) -> Tensor:
    """Keys `B` int64 of the first two set bits of `B x n`."""
    n = bits.shape[1]
    place = torch.where(bits, torch.arange(n, device=bits.device), n + 2)
    lacking = torch.arange(n, n + 2, device=bits.device).expand(len(bits), -1)
    two = torch.cat([place, lacking], 1).topk(2, dim=1, largest=False).values.sort(1).values
    return two[:, 0] * (n + 2) + two[:, 1]
