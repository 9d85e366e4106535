"""Proofs: dual multipliers of every row, sparse; what they prove is recomputed by whoever reads them."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Entries at most this share of a row's largest are dropped.
LEAST = 1e-3


@dataclasses.dataclass(frozen=True, eq=False)
class Proof:
    """Multipliers of `P` points, `K` rows each (row k of a point is empty), in compressed rows.

    lambda of row r has the entries `index[start:stop]` with the values `scale[r] * level[start:stop]`.

    Attributes:
        count: `P x K` uint32, entries of each row.
        scale: `P x K` float32.
        index: uint16 or uint32, atoms.
        level: float16 in [0, 1].
    """

    count: NDArray[np.uint32]
    scale: NDArray[np.float32]
    index: NDArray[np.unsignedinteger]
    level: NDArray[np.float16]

    @classmethod
    def compress(cls, multipliers: Tensor, *, least: Tensor | float = LEAST) -> Proof:
        """Keep the entries above `least` (one for all, or `P x K`) times the row's largest; `P x K x L`, >= 0."""
        points, classes, atoms = multipliers.shape
        scale = multipliers.amax(2).float() if atoms else torch.zeros(points, classes)
        level = (multipliers / scale.clamp(min=1e-30).unsqueeze(2)).to(torch.float16)
        limit = least.float().unsqueeze(2) if isinstance(least, Tensor) else least
        keep = (level.float() > limit) & (scale > 0).unsqueeze(2)
        kind = np.uint16 if atoms <= 65536 else np.uint32
        return cls(
            count=keep.sum(2).numpy().astype(np.uint32),
            scale=scale.numpy().astype(np.float32),
            index=keep.nonzero()[:, 2].numpy().astype(kind),
            level=level[keep].numpy(),
        )

    def dense(self, atoms: int) -> Tensor:
        """The multipliers as `P x K x L` float64, exactly what the file says."""
        points, classes = self.count.shape
        table = torch.zeros(points * classes, atoms, dtype=torch.float64)
        row = torch.from_numpy(np.repeat(np.arange(points * classes), self.count.reshape(-1)))
        value = (
            torch.from_numpy(self.level.astype(np.float64))
            * torch.from_numpy(self.scale.reshape(-1).astype(np.float64))[row]
        )
        table[row, torch.from_numpy(self.index.astype(np.int64))] = value
        return table.reshape(points, classes, atoms)

    def take(self, points: NDArray[np.int64]) -> Proof:
        """The proofs of some points."""
        ends = np.cumsum(self.count.sum(1))
        spans = [np.arange(ends[p] - self.count[p].sum(), ends[p]) for p in points]
        entries = np.concatenate(spans).astype(np.int64) if spans else np.zeros(0, np.int64)
        return Proof(self.count[points], self.scale[points], self.index[entries], self.level[entries])

    @classmethod
    def join(cls, parts: list[Proof]) -> Proof:
        """The proofs one after the other."""
        names = ("count", "scale", "index", "level")
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})

    @property
    def bytes_per_point(self) -> float:
        """Stored bytes a point."""
        arrays = (self.count, self.scale, self.index, self.level)
        return sum(array.nbytes for array in arrays) / max(1, len(self.count))
