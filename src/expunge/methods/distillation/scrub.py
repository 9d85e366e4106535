"""SCRUB: a student that leaves the original's outputs on the forget set and keeps them on the retain set."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import torch
from torch import nn

from expunge.core.trained import Trained
from expunge.methods.composition.stopping import ForgetErrors
from expunge.methods.finetuning import FineTuning
from expunge.methods.options import require_range
from expunge.methods.reads import Reads, Sizes
from expunge.methods.registry import register_method
from expunge.methods.task import Task
from expunge.training.checkpoint import load_state
from expunge.training.epochs.steps import EpochCheck, Pass, Steps, cross_entropy
from expunge.training.loop import Fit

from .teacher import Teacher, divergence


@register_method(
    "SCRUB",
    guarantee="empirical",
    citation="[Kurmanji2023], section 3, with SCRUB+R; its code",
    space={
        "epochs": [2, 3, 5, 10],
        "max_epochs": [1, 2],
        "learning_rate": (1e-4, 0.05, "log"),
        "alpha": (1e-4, 1.0, "log"),
        "temperature": [1.0, 2.0, 4.0],
    },
)
@dataclasses.dataclass(frozen=True)
class Scrub(FineTuning):
    """In each epoch, a pass over D_f that maximises KL(p_o || p), in the first `max_epochs` epochs; then a pass over
    D_r that minimises gamma CE + alpha KL(p_o || p).

    p_o is the original in evaluation mode, the teacher, and p the student, which starts from it. KL is at temperature
    T and multiplied by T^2, as in the paper's code; T = 1 is the paper's equation. Both passes share the momentum.

    With `rewind` (SCRUB+R), the state after each epoch is kept. The reference is the error of the last one on
    validation records of the classes of D_f, weighted as in D_f; the result is the epoch whose forget error is closest
    to it (of equal ones, the later). Rewinding does not undo D_f's influence on the epochs before: it only chooses
    among them.

    It needs D_f and D_r with labels, and, for rewinding, validation records of the classes of D_f. Cost of an epoch: a
    pass over D_r and one over D_f, the teacher's forward passes over both, and with `rewind` a forward pass over D_f.
    Defaults are those of the code for CIFAR-10. For small sets, it has 10 epochs, max_epochs 3, T 2, gamma 1, alpha
    0.5, Adam and weight decay 0.1. Methods of this name that minimise the sum of the terms in one step are not SCRUB.

    Attributes:
        max_epochs: epochs with a maximising pass, counted from the first (`msteps` in the code).
        alpha: weight of the divergence on D_r.
        gamma: weight of the cross-entropy on D_r.
        temperature: T.
        forget_batch_size: records per step of the maximising pass.
        rewind: whether to return the epoch whose forget error is closest to the reference.
        optimiser: `sgd` or `adam`.
    """

    epochs: int = 3
    learning_rate: float = 5e-4
    batch_size: int = 128
    max_epochs: int = 2
    alpha: float = 0.001
    gamma: float = 0.99
    temperature: float = 4.0
    forget_batch_size: int = 32
    rewind: bool = True
    optimiser: str = "sgd"
    ascends: ClassVar[bool] = True
    one_process: ClassVar[str] = "its loss reads a second model"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(
            "SCRUB",
            max_epochs=(self.max_epochs, self.max_epochs >= 0),
            alpha=(self.alpha, 0 <= self.alpha < math.inf),
            gamma=(self.gamma, 0 <= self.gamma < math.inf),
            temperature=(self.temperature, 0 < self.temperature < math.inf),
            forget_batch_size=(self.forget_batch_size, self.forget_batch_size >= 1),
        )

    def epoch_reads(self, sizes: Sizes) -> Reads:
        """See `FineTuning.epoch_reads`."""
        return Reads(retain=sizes.retain, retain_forward=sizes.retain)

    @property
    def needs_validation(self) -> str | None:
        """See `Method.needs_validation`: to rewind, or to stop."""
        return "rewind" if self.rewind and self.epochs else super().needs_validation

    def estimate_reads(self, trained: Trained, sizes: Sizes) -> Reads | None:
        """See `Method.estimate_reads`: only the first epochs have a pass over D_f; rewinding measures each epoch."""
        found = super().estimate_reads(trained, sizes)
        if found is None or not self.epochs:
            return found
        rounds = min(self.epochs, self.max_epochs)
        found = found + rounds * Reads(forget=sizes.forget, forget_forward=sizes.forget)
        if self.rewind and self.stop == "never":
            found = found + self.epochs * Reads(forget_forward=sizes.forget)
        return found + Reads(other_forward=sizes.validation, at_most=True) if self.rewind else found

    def unlearn(self, task: Task) -> None:
        """See `Method.unlearn`.

        Raises:
            MethodError: there are no validation records of a class of D_f, and `rewind` or `stop` needs them.
        """
        passes = self._make_passes(task, Teacher.original(task))
        if not self.rewind or not passes:
            self.run_passes(task, passes)
            return
        errors = ForgetErrors.make(task, "rewind")

        def measure(model: nn.Module, epoch: int) -> EpochCheck:
            if self.stop != "never":
                return errors.check(model, epoch)
            return EpochCheck("", {"forget_error": errors.measure_forget(model)}, len(errors.forget_rows))

        ends = [number + 1 for number, turn in enumerate(passes) if turn.ends_round]
        steps = Steps(after_epoch=measure)
        self.run_passes(task, passes, steps, snapshots=ends, conclude=lambda found: self._rewind(task, errors, found))

    def _make_passes(self, task: Task, teacher: Teacher) -> list[Pass]:
        def leave(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return -divergence(teacher(x), model(x), self.temperature)

        def keep(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            logits = model(x)
            return self.gamma * cross_entropy(logits, y) + self.alpha * divergence(teacher(x), logits, self.temperature)

        forget, retain = task.forget_rows, task.retain_rows
        passes = []
        for epoch in range(self.epochs):
            if epoch < self.max_epochs:
                more = len(forget)
                passes.append(
                    Pass(forget, leave, None, self.forget_batch_size, more_forward=more, ends_round=False, name="max")
                )
            passes.append(Pass(retain, keep, more_forward=len(retain), name="min"))
        return passes

    def _rewind(self, task: Task, errors: ForgetErrors, found: Fit) -> str:
        """Load the epoch whose forget error is closest to the reference; of equal ones, the later."""
        reference = errors.measure_reference(task.model)
        task.forward_records += len(errors.validation_rows)
        measured = [entry for entry in found.history if "forget_error" in entry]
        distances = [(abs(entry["forget_error"] - reference), -number) for number, entry in enumerate(measured)]
        chosen = -min(distances)[1]
        load_state(task.model, found.snapshots[measured[chosen]["epoch"]])
        return (
            f"; rewound to epoch {chosen + 1} of {len(measured)}: forget error "
            f"{measured[chosen]['forget_error']:.1f} %, reference {reference:.1f} %"
        )
