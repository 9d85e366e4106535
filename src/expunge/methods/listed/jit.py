"""JiT: one pass over the forget set that makes the outputs insensitive to noise on its inputs."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import torch
from torch import nn

from expunge.data.records import Records
from expunge.methods.changed_inputs import explain_integers, require_changeable_inputs
from expunge.methods.finetuning import FineTuning
from expunge.methods.options import require_range
from expunge.methods.reads import Reads, Sizes
from expunge.methods.registry import register_method
from expunge.methods.task import Task
from expunge.training.epochs.steps import Pass

from .modes import check_without_retain_set


@register_method(
    "JiT",
    guarantee="empirical",
    citation="[Foster2025]; its code, lipschitz.py",
    space={"learning_rate": (3e-5, 0.03, "log"), "sigma": (0.1, 2.0, "log")},
)
@dataclasses.dataclass(frozen=True)
class JiT(FineTuning):
    """Just in time unlearning: lower the local Lipschitz constant of the outputs on D_f. Neither D_r nor labels are
    read.

    One pass over D_f of SGD (no momentum, no decay) on the sum over a batch of 1/N sum_j |f(x) - f(x + n_j)|_2 /
    |n_j|_2, with n_j ~ N(0, sigma^2). x + n_j is clamped to the range of the batch, n_j is the difference after that,
    and f(x + n_j) has no gradient. f are the logits. Cost: `epochs` passes over D_f, and N forward passes for each.

    The released code changes the weights of a network in evaluation mode, so the BatchNorm statistics are frozen by
    default. It uses for VGG rate 3e-4 and sigma 0.5 (a class) or 0.01 (random records, a part of a class), for ViT 1.5
    and 0.8, 0.5 and 1.5, 0.1 and 0.5.

    Attributes:
        draws: N, draws of noise for each record.
        sigma: standard deviation of the noise, in units of the model's input.
        batch_size: records per step; the loss is a sum, so that a step is about as many steps of one record.
        batch_norm: treatment of the BatchNorm buffers: `frozen` or `train`; `re-estimate` would read D_r.
    """

    draws: int = 25
    sigma: float = 0.5
    learning_rate: float = 3e-4
    batch_size: int = 64
    epochs: int = 1
    momentum: float = 0.0
    weight_decay: float = 0.0
    batch_norm: str = "frozen"
    augment: str = "none"
    trains_on: ClassVar[str | None] = "forget"
    ascends: ClassVar[bool] = True
    one_process: ClassVar[str] = "its loss draws random numbers"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(
            "JiT",
            draws=(self.draws, self.draws >= 1),
            sigma=(self.sigma, 0 < self.sigma < math.inf),
        )
        check_without_retain_set("JiT", self.batch_norm)

    def epoch_reads(self, sizes: Sizes) -> Reads:
        """See `FineTuning.epoch_reads`."""
        return Reads(forget=sizes.forget, forget_forward=self.draws * sizes.forget)

    def unsupported_reason(self, model: nn.Module, records: Records) -> tuple[str, str] | None:
        """See `Method.unsupported_reason`: the inputs are integers."""
        return explain_integers(records)

    def unlearn(self, task: Task) -> None:
        """See `Method.unlearn`.

        Raises:
            MethodError: the inputs are integers.
        """
        require_changeable_inputs(task.context.records, "JiT")

        def loss(model: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            # within an epoch, the global CPU generator is seeded by it
            return measure_sensitivity(
                model, x, [torch.randn(x.shape).to(x.device) for _ in range(self.draws)], self.sigma
            )

        rows = task.forget_rows
        once = Pass(rows, loss, more_forward=self.draws * len(rows))
        self.run_passes(task, [once] * self.epochs)


def measure_sensitivity(model: nn.Module, x: torch.Tensor, noise: list[torch.Tensor], sigma: float) -> torch.Tensor:
    """Return the sum over records of the mean over draws of |f(x) - f(x')|_2 / |x - x'|_2.

    x' = x + sigma * noise, clamped to the range of x. A record that the clamp leaves unchanged counts as 0.

    Args:
        model: f, `B x ... -> B x K`.
        x: `B x ...`.
        noise: standard normal draws of the shape of x.
        sigma: standard deviation of the noise.
    """
    low, high = x.min(), x.max()
    logits = model(x)
    total = logits.new_zeros(())
    for draw in noise:
        moved = (x + sigma * draw).clamp(low, high)
        with torch.no_grad():
            other = model(moved)
        size = torch.linalg.vector_norm((x - moved).flatten(1), dim=1)
        change = torch.linalg.vector_norm(logits - other, dim=1)
        total = total + torch.where(size > 0, change / size.clamp_min(1e-30), torch.zeros_like(change)).sum()
    return total / len(noise)
