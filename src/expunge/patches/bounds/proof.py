"""Proofs: dual multipliers of every row, sparse and short; what they prove is recomputed by whoever reads them.

Any multipliers >= 0 are a proof, so they are rounded to what is short to write: an entry takes a byte for how far on
its atom lies and a byte for its size.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Entries at most this share of a row's largest are dropped.
LEAST = 1e-3

#: The largest level, and the gap that only moves on.
_TOP, _FAR = 255, 255


def _levels(multipliers: Tensor, least: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
    """Levels and refinements `P x K x L` (whole numbers up to 255) and scales `P x K` float32 of multipliers >= 0."""
    points, classes, atoms = multipliers.shape
    most = multipliers.amax(2) if atoms else multipliers.new_zeros(points, classes)
    share = multipliers / most.clamp(min=1e-30).unsqueeze(2)
    limit = least.to(share.dtype) if isinstance(least, Tensor) else torch.full_like(most, least)
    kept = (share > limit.unsqueeze(2)) & (most > 1e-30).unsqueeze(2)
    share = torch.where(kept, share, 0).mul_(_TOP**2)
    fine = (limit <= LEAST).unsqueeze(2)
    root = share.sqrt()
    level = torch.where(fine, root.floor(), root.round())
    rest = torch.where(fine, (share - level.square()).div_(2).round_().clamp_(0, _TOP), 0)
    return level, rest, (most / _TOP**2).float()


def round_multipliers(multipliers: Tensor, least: Tensor | float = LEAST) -> Tensor:
    """What `Proof.compress` keeps of multipliers `P x K x L`, float64, as `Proof.dense` gives it back."""
    level, rest, scale = _levels(multipliers, least)
    return level.double().square_().add_(rest.double(), alpha=2).mul_(scale.double().unsqueeze(2))


@dataclasses.dataclass(frozen=True, eq=False)
class Proof:
    """Multipliers of `P` points, `K` rows each (row k of a point is empty), in compressed rows.

    Entries stand one after the other, atoms rising within a row. Each is worth `scale * level^2`; its atom lies `gap`
    further than that of the entry before (than -1 at the start of a row), where every byte 255 before the gap adds 255
    to it. An entry that goes no further refines the one before: it adds `scale * 2 * level`.

    Attributes:
        count: `P x K` uint16 (uint32 from 32,768 atoms on), entries of each row.
        scale: `P x K` float32.
        gap: uint8; 255 is no entry, but moves on by 255.
        level: uint8, one an entry.
    """

    count: NDArray[np.unsignedinteger]
    scale: NDArray[np.float32]
    gap: NDArray[np.uint8]
    level: NDArray[np.uint8]

    @classmethod
    def compress(cls, multipliers: Tensor, *, least: Tensor | float = LEAST) -> Proof:
        """Keep the entries above `least` (one for all, or `P x K`) times the row's largest; `P x K x L`, >= 0.

        Rows of which no more than `LEAST` is dropped are written finely: two entries an atom, to 2e-5 of the largest.
        """
        level, rest, scale = _levels(multipliers, least)
        keep, again = level > 0, (level > 0) & (rest > 0)
        point, row, atom = (part.numpy() for part in keep.nonzero(as_tuple=True))
        line, fine = point * multipliers.shape[1] + row, again[keep].numpy()
        step = atom + 1
        step[1:] -= np.where(line[1:] != line[:-1], 0, atom[:-1] + 1)
        far = step // _FAR
        end = np.cumsum(far + 1 + fine)
        gap = np.full(int(end[-1]) if len(end) else 0, _FAR, dtype=np.uint8)
        gap[end - 1 - fine] = step % _FAR
        gap[end[fine] - 1] = 0
        place = np.cumsum(1 + fine)
        levels = np.zeros(int(place[-1]) if len(place) else 0, dtype=np.uint8)
        levels[place - 1 - fine] = level[keep].numpy()
        levels[place[fine] - 1] = rest[again].numpy()
        count = (keep.sum(2) + again.sum(2)).numpy()
        return cls(count.astype(count_dtype(multipliers.shape[2])), scale.numpy(), gap, levels)

    def dense(self, atoms: int) -> Tensor:
        """The multipliers as `P x K x L` float64, exactly what the file says."""
        points, classes = self.count.shape
        table = np.zeros((points * classes, atoms))
        count = self.count.reshape(-1).astype(np.int64)
        row = np.repeat(np.arange(points * classes), count)
        reached = np.concatenate([[0], np.cumsum(self.gap, dtype=np.int64)[self.gap != _FAR]])
        level = self.level.astype(np.float64)
        worth = np.where(np.diff(reached) == 0, 2 * level, level**2) * self.scale.reshape(-1).astype(np.float64)[row]
        before = reached[np.cumsum(count) - count]
        np.add.at(table, (row, reached[1:] - before[row] - 1), worth)
        return torch.from_numpy(table.reshape(points, classes, atoms))

    def take(self, points: NDArray[np.int64]) -> Proof:
        """The proofs of some points."""
        ends = np.concatenate([[0], np.cumsum(self.count.sum(1, dtype=np.int64))])
        bytes_ = np.concatenate([[0], np.flatnonzero(self.gap != _FAR) + 1])[ends]

        def spans(bounds: NDArray[np.int64]) -> NDArray[np.int64]:
            parts = [np.arange(bounds[p], bounds[p + 1]) for p in points]
            return np.concatenate(parts) if parts else np.zeros(0, np.int64)

        return Proof(self.count[points], self.scale[points], self.gap[spans(bytes_)], self.level[spans(ends)])

    @classmethod
    def join(cls, parts: list[Proof]) -> Proof:
        """The proofs one after the other."""
        names = ("count", "scale", "gap", "level")
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})

    @property
    def bytes_per_point(self) -> float:
        """Stored bytes a point."""
        arrays = (self.count, self.scale, self.gap, self.level)
        return sum(array.nbytes for array in arrays) / max(1, len(self.count))


def count_dtype(atoms: int) -> type[np.unsignedinteger]:
    """The type that counts the entries of a row."""
    return np.uint16 if atoms < 2**15 else np.uint32
