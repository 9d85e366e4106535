"""GA: gradient ascent on the forget set."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from expunge.training.loop import cross_entropy, mean_over_records

from .finetuning import FineTuning
from .registry import register_method
from .task import Task


@register_method(
    "GA",
    guarantee="empirical",
    citation="[Jia2023], section 3; Graves et al. 2021; Thudi et al. 2021",
    space={"epochs": [1, 2, 3, 5, 10], "learning_rate": (1e-5, 0.01, "log")},
)
@dataclasses.dataclass(frozen=True)
class GA(FineTuning):
    """Maximise the cross-entropy on D_f by gradient ascent, with the mask fixed.

    D_r is not read, unless BatchNorm buffers are re-estimated. With `batch_norm="train"`, the choice of the papers, the
    running statistics move towards those of the forget set.
    """

    epochs: int = 5
    learning_rate: float = 1e-4
    #: The only set that the method trains on.
    trains_on: ClassVar[str | None] = "forget"
    ascends: ClassVar[bool] = True

    def unlearn(self, task: Task) -> None:
        """See `Method.unlearn`."""
        self.fine_tune(task, on="forget", objective=negative_cross_entropy)


@mean_over_records
def negative_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return minus the mean cross-entropy of `B x K` logits."""
    return -cross_entropy(logits, labels)
