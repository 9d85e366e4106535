"""Fanchuan: the first place of the NeurIPS 2023 challenge (uniform outputs, a contrastive push, repair)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional

from expunge.core.trained import Trained
from expunge.methods.composition.two_sets import Partner, count_drawn, count_steps
from expunge.methods.finetuning import FineTuning
from expunge.methods.options import require_range
from expunge.methods.reads import Reads, Sizes
from expunge.methods.registry import register_method
from expunge.methods.task import Task
from expunge.training.epochs.steps import Pass

from .teacher import divergence

#: The last learning rate of the contrastive passes.
LAST_RATE = 1e-6


@register_method(
    "Fanchuan",
    guarantee="empirical",
    citation="first place of the NeurIPS 2023 challenge [Triantafillou2024]; copies of its notebook",
    space={
        "epochs": [2, 4, 8],
        "learning_rate": (5e-4, 0.02, "log"),
        "uniform_learning_rate": (5e-4, 0.02, "log"),
        "contrast_learning_rate": (3e-5, 0.003, "log"),
    },
)
@dataclasses.dataclass(frozen=True)
class Fanchuan(FineTuning):
    """One pass over D_f towards uniform outputs; then in each epoch a pass over D_f that spreads its similarities to
    records of D_r evenly, and a fine-tuning pass over D_r.

    With logits z, the passes minimise

        mean_{D_f} KL(uniform || p); -mean_{i, j} log softmax_j(z_i . z_j / T) over records i of a batch of D_f and j of
        one of D_r (z_j is constant); mean_{D_r} CE.

    Each of the three has its own momentum. The learning rate of the second falls by a cosine to 1e-6, step by step; the
    second has no weight decay, nor the first. It needs D_f, and D_r with labels. Cost: (2 + epochs) passes over D_f at
    most, and `epochs` passes over D_r, with a forward pass over as many batches of D_r as D_f has.

    Defaults are those of the entry: `learning_rate` is 1e-3 * 256 / 64. The entry stops a contrastive pass at the end
    of D_r if that is shorter than D_f; here D_r is read again.

    Attributes:
        uniform_learning_rate: of the first pass.
        contrast_learning_rate: the first of the contrastive passes.
        temperature: T.
    """

    epochs: int = 8
    learning_rate: float = 4e-3
    weight_decay: float = 1e-2
    uniform_learning_rate: float = 5e-3
    contrast_learning_rate: float = 3e-4
    temperature: float = 1.15
    one_process: ClassVar[str] = "each of its steps reads a second set of records"
    idle_if_zero: ClassVar[tuple[str, ...]] = ("epochs",)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(
            "Fanchuan",
            uniform_learning_rate=(self.uniform_learning_rate, 0 <= self.uniform_learning_rate < math.inf),
            contrast_learning_rate=(self.contrast_learning_rate, 0 <= self.contrast_learning_rate < math.inf),
            temperature=(self.temperature, 0 < self.temperature < math.inf),
        )

    def epoch_reads(self, sizes: Sizes) -> Reads:
        """See `FineTuning.epoch_reads`."""
        drawn = count_drawn(sizes.forget, sizes.retain, self.batch_size)
        return Reads(retain=sizes.retain, forget=sizes.forget, retain_forward=drawn)

    def estimate_reads(self, trained: Trained, sizes: Sizes) -> Reads | None:
        """See `Method.estimate_reads`: there is one more pass over D_f at the beginning."""
        found = super().estimate_reads(trained, sizes)
        return found if found is None or not self.epochs else found + Reads(forget=sizes.forget)

    def unlearn(self, task: Task) -> None:
        """See `Method.unlearn`."""
        first = Pass(
            task.forget_rows, _to_uniform, rate=lambda fraction: self.uniform_learning_rate, weight_decay=0.0,
            momentum="uniform", ends_round=False, name="uniform",
        )  # fmt: skip
        passes = [first] if self.epochs else []
        for epoch in range(self.epochs):
            passes.append(self._make_contrast(task, epoch))
            passes.append(Pass(task.retain_rows, momentum="retain", name="retain"))
        self.run_passes(task, passes)

    def _make_contrast(self, task: Task, epoch: int) -> Pass:
        partner = Partner(task, task.retain_rows, self.make_recipe(task.trained), epoch)

        def loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            forgotten = model(x)
            with torch.no_grad():
                retained = model(partner.draw()[0])
            similarity = forgotten.float() @ (retained.float().T / self.temperature)
            return -functional.log_softmax(similarity, dim=1).mean()

        return Pass(
            task.forget_rows, loss, rate=self._make_rate(epoch), weight_decay=0.0, momentum="contrast",
            more_forward=partner.count(count_steps(task.forget_rows, self.batch_size)), ends_round=False,
            name="contrast",
        )  # fmt: skip

    def _make_rate(self, epoch: int) -> Callable[[float], float]:
        """The cosine from the first rate to the last, at a fraction of the contrastive pass of an epoch."""

        def rate(fraction: float) -> float:
            cosine = 0.5 * (1 + math.cos(math.pi * (epoch + fraction) / self.epochs))
            return LAST_RATE + (self.contrast_learning_rate - LAST_RATE) * cosine

        return rate


def _to_uniform(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    logits = model(x)
    return divergence(torch.zeros_like(logits, dtype=torch.float32), logits)
