"""The settings of one model of an ensemble: its records, seeds, mask and starting weights."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray

from expunge.core.mask import Mask
from expunge.core.show import repr_fields
from expunge.training.loop import order_seed

#: Tensors of all `M` members by name, `M x ...`.
Stacked = dict[str, torch.Tensor]


@dataclasses.dataclass(frozen=True, eq=False)
class Member:
    """The settings of one model of an ensemble.

    Attributes:
        rows: row numbers of its training records.
        seed: training seed; seeds the initial weights and the order of records as in `train`, unless those are given.
        initial_seed: seed of the initial weights.
        order: seed of the order of records (the `seed` of `fit`).
        mask: weights that stay +0.0, or None. Either all members of an ensemble have a mask or none has.
        start_from: a state dict to start from instead of the initial weights (a rewind checkpoint, for example).
    """

    rows: NDArray[np.int64]
    seed: int = 0
    initial_seed: int | None = None
    order: int | None = None
    mask: Mask | None = None
    start_from: dict[str, torch.Tensor] | None = None

    __repr__ = repr_fields

    @property
    def seeds(self) -> dict[str, int]:
        """Seeds by purpose, as in the provenance that `train` records."""
        initial = self.seed if self.initial_seed is None else self.initial_seed
        return {
            "initial": initial,
            "order": order_seed(self.seed) if self.order is None else self.order,
            "training": self.seed,
        }
