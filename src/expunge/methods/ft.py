"""FT: fine-tuning on the retain set."""

from __future__ import annotations

import dataclasses

from .finetuning import FineTuning
from .registry import register_method
from .task import Task


@register_method(
    "FT",
    guarantee="empirical",
    citation="[Jia2023], section 3; Warnecke et al. 2021; Golatkar et al. 2020",
    corrects=True,
    space={"epochs": [1, 2, 3, 5, 10], "learning_rate": (0.001, 0.1, "log")},
)
@dataclasses.dataclass(frozen=True)
class FT(FineTuning):
    """Fine-tune the original model on D_r for a few epochs, with its mask fixed.

    It minimises mean_{D_r} CE(f_theta(x), y) by SGD, or by `optimiser`, starting from the original weights theta_o. For
    a correction, D_r has the corrected records with their new values.

    Attributes:
        label_smoothing: s: the target of a record is 1 - s for its class, plus s / K for each of K classes.
    """

    label_smoothing: float = 0.0

    def unlearn(self, task: Task) -> None:
        """See `Method.unlearn`."""
        self.fine_tune(task, on="retain")
