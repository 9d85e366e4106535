"""NegGrad+: descent on the retain set and ascent on the forget set in every step."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import nn

from expunge.methods.composition.two_sets import Partner, count_drawn, count_steps
from expunge.methods.finetuning import FineTuning
from expunge.methods.options import require_range
from expunge.methods.reads import Reads, Sizes
from expunge.methods.registry import register_method
from expunge.methods.task import Task
from expunge.training.epochs.steps import Pass, cross_entropy


@register_method(
    "NegGrad+",
    guarantee="empirical",
    citation="[Kurmanji2023], section 4; its code",
    space={"epochs": [1, 2, 3, 5], "learning_rate": (0.001, 0.1, "log"), "alpha": [0.8, 0.9, 0.95, 0.99, 0.999]},
)
@dataclasses.dataclass(frozen=True)
class NegGradPlus(FineTuning):
    """Minimise alpha CE(D_r) - (1 - alpha) CE(D_f): each step reads a batch of each set; D_f is read in a cycle.

    An epoch is a pass over D_r. The objective is unbounded below: `stop` ends it when the forget error reaches that of
    validation records, and if the loss or a weight is not finite, the last good epoch is kept. Both forward passes are
    in the mode that `batch_norm` says: `train` in the papers, `frozen` in the port of Deep Unlearn. It needs D_f and
    D_r with labels. Cost of an epoch: one pass over D_r, and as many steps on batches of D_f.

    alpha is 0.95 in Deep Unlearn; the CIFAR-10 runs of the paper use 0.9999 (not confirmed). The numbers of epochs and
    the learning rate are ours.

    Attributes:
        alpha: weight of the retain set, in [0, 1]; 1 is FT.
    """

    epochs: int = 5
    alpha: float = 0.95
    ascends: ClassVar[bool] = True
    one_process: ClassVar[str] = "each of its steps reads a second set of records"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("NegGrad+", alpha=(self.alpha, 0 <= self.alpha <= 1))

    def epoch_reads(self, sizes: Sizes) -> Reads:
        """See `FineTuning.epoch_reads`."""
        return Reads(retain=sizes.retain, forget=count_drawn(sizes.retain, sizes.forget, self.batch_size))

    def unlearn(self, task: Task) -> None:
        """See `Method.unlearn`."""
        self.run_passes(task, [self._make_pass(task, number) for number in range(self.epochs)])

    def _make_pass(self, task: Task, number: int) -> Pass:
        partner = Partner(task, task.forget_rows, self.make_recipe(task.trained), number)

        def loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            retained = cross_entropy(model(x), y)
            forget_x, forget_y = partner.draw()
            return self.alpha * retained - (1 - self.alpha) * cross_entropy(model(forget_x), forget_y)

        read = partner.count(count_steps(task.retain_rows, self.batch_size))
        return Pass(task.retain_rows, loss, more_trained=read)
