"""Bad Teacher: a student of two teachers, of an untrained network on the forget set and of the original elsewhere."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from expunge.core.errors import MethodError
from expunge.core.seeds import derive
from expunge.core.trained import Trained
from expunge.data.corrections.values import replace_labels
from expunge.data.records import Records
from expunge.methods.composition.two_sets import sample_rows
from expunge.methods.finetuning import FineTuning
from expunge.methods.options import require_range
from expunge.methods.reads import Reads, Sizes
from expunge.methods.registry import register_method
from expunge.methods.start import check_buildable
from expunge.methods.task import Task
from expunge.training.epochs.steps import Pass

from .teacher import Teacher


@register_method(
    "Bad Teacher",
    guarantee="empirical",
    citation="[Chundawat2023], section 3; its code",
    space={
        "epochs": [1, 2, 3],
        "learning_rate": (1e-5, 0.001, "log"),
        "retain_fraction": [0.1, 0.3, 1.0],
        "temperature": [1.0, 2.0, 4.0],
    },
)
@dataclasses.dataclass(frozen=True)
class BadTeacher(FineTuning):
    """Minimise KL(p_bad || p) on D_f and KL(p_o || p) on a part of D_r: p_bad is an untrained network of the same
    architecture, and p_o the original.

    KL(p_t || p) = sum_k p_t,k log(p_t,k / p_k) at temperature T, the mean over the records of a batch that mixes both
    sets. Both teachers are in evaluation mode. The untrained network has initial weights drawn from the seed of the
    method. It needs D_f and D_r, no labels, and a network that can be built again. Cost of an epoch: a pass over D_f
    and over the part of D_r, and a forward pass of a teacher over both.

    The code of the paper divides by the number of classes too (`legacy`). It imitates a random network on D_f, while a
    retrained network mostly classifies these records correctly, so it is a baseline to compare with, not to choose.

    Attributes:
        retain_fraction: fraction of D_r to train on; 0.3 in the code.
        temperature: T.
        optimiser: `sgd` or `adam`.
        legacy: divide the divergence by the number of classes, as the code does.
    """

    epochs: int = 1
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    retain_fraction: float = 0.3
    temperature: float = 1.0
    optimiser: str = "adam"
    legacy: bool = False
    one_process: ClassVar[str] = "its loss reads a second model"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(
            "Bad Teacher",
            retain_fraction=(self.retain_fraction, 0 < self.retain_fraction <= 1),
            temperature=(self.temperature, 0 < self.temperature < math.inf),
        )

    def epoch_reads(self, sizes: Sizes) -> Reads:
        """See `FineTuning.epoch_reads`."""
        part = max(1, round(self.retain_fraction * sizes.retain))
        return Reads(retain=part, forget=sizes.forget, retain_forward=part, forget_forward=sizes.forget)

    def unsupported_reason(self, model: nn.Module, records: Records) -> tuple[str, str] | None:
        """See `Method.unsupported_reason`: there is only one class, so all outputs are equal."""
        return None if records.classes > 1 else ("Bad Teacher needs at least two classes", "")

    def check_state(self, trained: Trained) -> None:
        """See `Method.check_state`.

        Raises:
            ModelError: the network cannot be built again.
            MethodError: it is built with the trained weights.
        """
        super().check_state(trained)
        check_buildable(trained, self.name, "its untrained teacher would know D_f")

    def unlearn(self, task: Task) -> None:
        """See `Method.unlearn`.

        Raises:
            MethodError: there is only one class, so all outputs are equal.
        """
        records = task.context.records
        reason = self.unsupported_reason(task.model, records)
        if reason is not None:
            raise MethodError(reason[0], where=records.name)
        good, bad = Teacher.original(task), Teacher.untrained(task, derive(task.seed, "teacher"))

        def loss(model: nn.Module, x: torch.Tensor, is_forgotten: torch.Tensor) -> torch.Tensor:
            logits = model(x)
            target = torch.empty_like(logits, dtype=torch.float32)
            for flag, teacher in ((0, good), (1, bad)):
                chosen = is_forgotten == flag
                if chosen.any():
                    target[chosen] = functional.softmax(teacher(x[chosen]) / self.temperature, dim=1)
            log_student = functional.log_softmax(logits.float() / self.temperature, dim=1)
            total = functional.kl_div(log_student, target, reduction="sum")
            return total / (len(target) * (records.classes if self.legacy else 1))

        retain = task.retain_rows
        part = sample_rows(task, retain, max(1, round(self.retain_fraction * len(retain))), "retain")
        flags = np.zeros(len(records), dtype=np.int64)
        flags[task.forget_rows] = 1
        rows = np.concatenate([part, task.forget_rows])
        turn = Pass(rows, loss, replace_labels(records, flags), more_forward=len(rows))
        self.run_passes(task, [turn] * self.epochs)
