"""DELETE: distil the original conditioned on "not the true class", from the forget set alone."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import torch
from torch import nn

from expunge.core.errors import MethodError
from expunge.methods.finetuning import FineTuning
from expunge.methods.options import require_range
from expunge.methods.reads import Reads, Sizes
from expunge.methods.registry import register_method
from expunge.methods.task import Task
from expunge.training.epochs.steps import Pass

from .teacher import Teacher, divergence

#: The logit of the true class in the target: its probability is 0.
LOGIT = -1e10


@register_method(
    "DELETE",
    guarantee="empirical",
    citation="[Zhou2025], equation 5; its code",
    space={"epochs": [5, 10, 20], "learning_rate": (1e-5, 0.01, "log"), "temperature": [0.5, 1.0, 2.0]},
)
@dataclasses.dataclass(frozen=True)
class Delete(FineTuning):
    """Minimise KL(q || p) on D_f, where q = softmax(z_o / T) with the true class left out: q_y = 0, and the other
    classes keep their proportions.

    z_o are the original's logits in evaluation mode. D_r is not read, unless BatchNorm buffers are re-estimated; it
    needs D_f with labels, and at least two classes. Cost of an epoch: one pass over D_f and the teacher's forward pass
    over it. It is the smooth version of mask-logit. Made for whole classes: of single records, it forgets that a
    retrained model would classify most of them correctly.

    Epochs, batch size and weight decay are those of the paper; it searches the learning rate in [1e-7, 1e-2]. The code
    has no weight decay. With `batch_norm="frozen"`, as the code's option, the buffers do not follow D_f.

    Attributes:
        temperature: T.
    """

    epochs: int = 20
    learning_rate: float = 1e-4
    batch_size: int = 128
    temperature: float = 1.0
    trains_on: ClassVar[str | None] = "forget"
    one_process: ClassVar[str] = "its loss reads a second model"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("DELETE", temperature=(self.temperature, 0 < self.temperature < math.inf))

    def epoch_reads(self, sizes: Sizes) -> Reads:
        """See `FineTuning.epoch_reads`."""
        return Reads(forget=sizes.forget, forget_forward=sizes.forget)

    def unlearn(self, task: Task) -> None:
        """See `Method.unlearn`.

        Raises:
            MethodError: there is only one class, so nothing is left without it.
        """
        if task.context.records.classes < 2:
            raise MethodError("DELETE needs at least two classes", where=task.context.records.name)
        teacher, rows = Teacher.original(task), task.forget_rows

        def loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            target = teacher(x) / self.temperature
            return divergence(target.scatter(1, y[:, None], LOGIT), model(x))

        self.run_passes(task, [Pass(rows, loss, more_forward=len(rows))] * self.epochs)
