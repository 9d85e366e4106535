"""One model of an ensemble: what differs between the members."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray

from expunge.core.mask import Mask
from expunge.training.loop import order_seed

#: `M x ...` tensors by name, of all members.
Stacked = dict[str, torch.Tensor]


@dataclasses.dataclass(frozen=True, eq=False)
class Member:
    """One model of an ensemble.

    Attributes:
        rows: rows of the records that it is trained on.
        seed: training seed; seeds the initial weights and the order as `train` does, unless those are given.
        initial_seed: seed of the initial weights alone.
        order: seed of the order of records (`fit`'s `seed`).
        mask: weights that stay +0.0, or None. Within one ensemble all members have one or none has.
        start_from: a state dict to start from instead of initial weights (a rewind checkpoint, say).
    """

    rows: NDArray[np.int64]
    seed: int = 0
    initial_seed: int | None = None
    order: int | None = None
    mask: Mask | None = None
    start_from: dict[str, torch.Tensor] | None = None

    @property
    def seeds(self) -> dict[str, int]:
        """Seeds by purpose, as `train` records them."""
        initial = self.seed if self.initial_seed is None else self.initial_seed
        return {
            "initial": initial,
            "order": order_seed(self.seed) if self.order is None else self.order,
            "training": self.seed,
        }
