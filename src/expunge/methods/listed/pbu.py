"""PBU: ascent on the forget set, held near the original weights by the Fisher information."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import torch
from torch import nn

from expunge.core.trained import Trained
from expunge.methods.finetuning import FineTuning
from expunge.methods.options import require_range
from expunge.methods.reads import Reads, Sizes
from expunge.methods.registry import register_method
from expunge.methods.task import Task
from expunge.training.curvature import Vector, diagonal_fisher, parameters_of
from expunge.training.epochs.steps import Pass, Steps, cross_entropy, mean_over_records

from .modes import check_without_retain_set


@register_method(
    "PBU",
    guarantee="empirical",
    citation="[Panda2025]; its notebook",
    space={"epochs": [1, 2, 5], "learning_rate": (1e-6, 0.01, "log"), "alpha": (63.1, 6310.0, "log")},
)
@dataclasses.dataclass(frozen=True)
class PBU(FineTuning):
    """Partially blinded unlearning: ascend on D_f, and stay near the original weights; D_r is not read.

    It minimises alpha * -CE(D_f) + beta * sum_i F_i (theta_i - theta_o_i)^2 + gamma * |theta - theta_o|^2 by Adam,
    where F is the diagonal of the Fisher information of the original on D_f (exact over the labels, a gradient for each
    record). It was proposed for whole classes. Needs D_f and its labels. Cost: K - 1 backward passes over D_f for F,
    and `epochs` passes over D_f.

    The defaults are those of the released MNIST notebook, which Optuna chose for it (alpha 631 to 721, beta 90 to 100).
    The notebook trains in training mode with BatchNorm (`batch_norm="train"`), which moves its statistics towards D_f;
    the paper does not say, and here they are frozen by default.

    Attributes:
        alpha: weight of the ascent on D_f.
        beta: weight of the squared distance in the Fisher information.
        gamma: weight of the squared Euclidean distance.
        optimiser: `adam` (the momentum is not used) or `sgd`.
        batch_norm: treatment of the BatchNorm buffers: `frozen` or `train`; `re-estimate` would read D_r.
    """

    alpha: float = 631.0
    beta: float = 100.0
    gamma: float = 4001.0
    epochs: int = 5
    learning_rate: float = 1e-4
    batch_size: int = 64
    momentum: float = 0.0
    weight_decay: float = 0.0
    batch_norm: str = "frozen"
    augment: str = "none"
    optimiser: str = "adam"
    trains_on: ClassVar[str | None] = "forget"
    idle_if_zero: ClassVar[tuple[str, ...]] = ("epochs", "learning_rate", "alpha")
    ascends: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(
            "PBU",
            alpha=(self.alpha, 0 <= self.alpha < math.inf),
            beta=(self.beta, 0 <= self.beta < math.inf),
            gamma=(self.gamma, 0 <= self.gamma < math.inf),
        )
        check_without_retain_set("PBU", self.batch_norm)

    def estimate_reads(self, trained: Trained, sizes: Sizes) -> Reads | None:
        """See `Method.estimate_reads`."""
        found = super().estimate_reads(trained, sizes)
        return None if found is None else found + Reads(forget=max(1, sizes.classes - 1) * sizes.forget)

    def unlearn(self, task: Task) -> None:
        """See `Method.unlearn`."""
        start = {name: weight.detach().clone() for name, weight in parameters_of(task.model).items()}
        fisher = diagonal_fisher(task.model, task.read(task.forget_rows, self.batch_size), mask=task.mask)
        task.trained_records += max(0, task.context.records.classes - 2) * len(task.forget_rows)

        def penalty(model: nn.Module, epoch: int) -> torch.Tensor:
            return measure_distance(parameters_of(model), start, fisher, self.beta, self.gamma)

        passes = [Pass(task.forget_rows)] * self.epochs
        self.run_passes(task, passes, Steps(Ascent(self.alpha), penalty))


@mean_over_records
@dataclasses.dataclass(frozen=True)
class Ascent:
    """-alpha times the cross-entropy.

    Attributes:
        alpha: the factor.
    """

    alpha: float

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return -self.alpha * cross_entropy(logits, labels)


def measure_distance(
    weights: dict[str, nn.Parameter], start: Vector, fisher: Vector, beta: float, gamma: float
) -> torch.Tensor:
    """Return sum_i (beta F_i + gamma) (theta_i - theta_o_i)^2."""
    parts = [((beta * fisher[name] + gamma) * (w - start[name]).square()).sum() for name, w in weights.items()]
    return torch.stack(parts).sum()
