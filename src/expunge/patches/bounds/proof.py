"""Proofs: the dual multipliers of every row, compressed. A reader recomputes the bounds that they prove.

Any multipliers >= 0 are a valid proof, so they may be rounded. An entry takes one byte for the distance to its atom and
one byte for its size.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from expunge.core.errors import ConfigError
from expunge.core.show import repr_fields

#: Entries of at most this fraction of the largest of a row are dropped.
LEAST = 1e-3

#: The largest level, and the gap that only advances the position.
_TOP, _FAR = 255, 255


def _levels(multipliers: Tensor, least: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
    """Return levels and refinements `P x K x L` (integers up to 255) and scales `P x K` float32 of multipliers."""
    points, classes, atoms = multipliers.shape
    most = multipliers.amax(2) if atoms else multipliers.new_zeros(points, classes)
    fraction = multipliers / most.clamp(min=1e-30).unsqueeze(2)
    limit = least.to(fraction.dtype) if isinstance(least, Tensor) else torch.full_like(most, least)
    kept = (fraction > limit.unsqueeze(2)) & (most > 1e-30).unsqueeze(2)
    fraction = torch.where(kept, fraction, 0).mul_(_TOP**2)
    fine = (limit <= LEAST).unsqueeze(2)
    root = fraction.sqrt()
    level = torch.where(fine, root.floor(), root.round())
    rest = torch.where(fine, (fraction - level.square()).div_(2).round_().clamp_(0, _TOP), 0)
    return level, rest, (most / _TOP**2).float()


def round_multipliers(multipliers: Tensor, least: Tensor | float = LEAST) -> Tensor:
    """Return multipliers `P x K x L` float64 after a round trip through `Proof.compress` and `Proof.dense`."""
    level, rest, scale = _levels(multipliers, least)
    return level.double().square_().add_(rest.double(), alpha=2).mul_(scale.double().unsqueeze(2))


@dataclasses.dataclass(frozen=True, eq=False)
class Proof:
    """Dual multipliers of `P` points in compressed rows, `K` rows per point (row k, of the target, is empty).

    The entries are stored one after the other, with increasing atoms within a row. An entry has the value
    `scale * level^2`. Its atom is `gap` beyond the atom of the previous entry (-1 at the start of a row); each byte 255
    before the gap adds 255. An entry with gap 0 refines the previous one by `scale * 2 * level`.

    Attributes:
        count: `P x K` uint16 (uint32 from 32,768 atoms on), number of entries per row.
        scale: `P x K` float32.
        gap: uint8; 255 is no entry, it advances the position by 255.
        level: uint8, one per entry.

    Raises:
        ConfigError: a scale is negative or not finite, or the arrays do not fit together.
    """

    count: NDArray[np.unsignedinteger]
    scale: NDArray[np.float32]
    gap: NDArray[np.uint8]
    level: NDArray[np.uint8]

    __repr__ = repr_fields

    def __post_init__(self) -> None:
        entries, count = self.gap != _FAR, self.count.astype(np.int64)
        total = int(count.sum())
        if self.count.ndim != 2 or self.scale.shape != self.count.shape:
            raise ConfigError("count and scale are not P x K", where="proof")
        if not (np.isfinite(self.scale).all() and (self.scale >= 0).all()):
            raise ConfigError("a scale is negative or not finite", where="proof.scale")
        if (count < 0).any() or len(self.level) != total or int(entries.sum()) != total:
            raise ConfigError("there are more or fewer entries than counted", where="proof")
        if len(entries) and not entries[-1]:
            raise ConfigError("the gaps end within an entry", where="proof.gap")

    @classmethod
    def compress(cls, multipliers: Tensor, *, least: Tensor | float = LEAST) -> Proof:
        """Compress multipliers `P x K x L`, >= 0.

        Args:
            multipliers: the multipliers.
            least: entries of at most this fraction of the largest of their row are dropped (one number, or `P x K`).
                Rows with a fraction of at most `LEAST` are stored with two entries per atom, to 2e-5 of the largest.
        """
        level, rest, scale = _levels(multipliers, least)
        keep, is_refined = level > 0, (level > 0) & (rest > 0)
        point, row, atom = (part.numpy() for part in keep.nonzero(as_tuple=True))
        line, fine = point * multipliers.shape[1] + row, is_refined[keep].numpy()
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
        levels[place[fine] - 1] = rest[is_refined].numpy()
        count = (keep.sum(2) + is_refined.sum(2)).numpy()
        return cls(count.astype(count_dtype(multipliers.shape[2])), scale.numpy(), gap, levels)

    def dense(self, atoms: int) -> Tensor:
        """Return the stored multipliers as `P x K x L` float64, without further rounding.

        Raises:
            ConfigError: an entry is of an atom that does not exist.
        """
        points, classes = self.count.shape
        table = np.zeros((points * classes, atoms))
        count = self.count.reshape(-1).astype(np.int64)
        row = np.repeat(np.arange(points * classes), count)
        reached = np.concatenate([[0], np.cumsum(self.gap, dtype=np.int64)[self.gap != _FAR]])
        level = self.level.astype(np.float64)
        value = np.where(np.diff(reached) == 0, 2 * level, level**2) * self.scale.reshape(-1).astype(np.float64)[row]
        before = reached[np.cumsum(count) - count]
        atom = reached[1:] - before[row] - 1
        if len(atom) and not 0 <= atom.min() <= atom.max() < atoms:
            raise ConfigError("an entry is of an atom that does not exist, or refines nothing", where="proof.gap")
        np.add.at(table, (row, atom), value)
        return torch.from_numpy(table.reshape(points, classes, atoms))

    def take(self, points: NDArray[np.int64]) -> Proof:
        """Return the proofs of some points."""
        ends = np.concatenate([[0], np.cumsum(self.count.sum(1, dtype=np.int64))])
        bytes_ = np.concatenate([[0], np.flatnonzero(self.gap != _FAR) + 1])[ends]

        def spans(bounds: NDArray[np.int64]) -> NDArray[np.int64]:
            parts = [np.arange(bounds[p], bounds[p + 1]) for p in points]
            return np.concatenate(parts) if parts else np.zeros(0, np.int64)

        return Proof(self.count[points], self.scale[points], self.gap[spans(bytes_)], self.level[spans(ends)])

    @classmethod
    def join(cls, parts: list[Proof]) -> Proof:
        """Concatenate proofs."""
        names = ("count", "scale", "gap", "level")
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})

    @property
    def bytes_per_point(self) -> float:
        """Stored bytes per point."""
        arrays = (self.count, self.scale, self.gap, self.level)
        return sum(array.nbytes for array in arrays) / max(1, len(self.count))


def count_dtype(atoms: int) -> type[np.unsignedinteger]:
    """Return the dtype of the numbers of entries per row."""
    return np.uint16 if atoms < 2**15 else np.uint32
