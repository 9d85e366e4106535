"""Teachers, and the divergence between the outputs of a student and of a teacher."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from expunge.core.trained import clone_model
from expunge.methods.start import strip_patches
from expunge.methods.task import Task
from expunge.models import Architecture


class Teacher:
    """A network whose outputs are targets: in evaluation mode, without gradients.

    Args:
        network: on the runtime's device; it is not shared with the student.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network.eval().requires_grad_(False)

    @classmethod
    def original(cls, task: Task) -> Teacher:
        """The original model."""
        return cls(task.context.runtime.place(clone_model(task.trained.model)))

    @classmethod
    def untrained(cls, task: Task, seed: int) -> Teacher:
        """A network of the original's architecture, with the initial weights of a seed."""
        architecture = Architecture.from_json(strip_patches(task.trained).provenance.architecture)
        return cls(task.context.runtime.place(architecture.build(seed)))

    @torch.no_grad()
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`B x K` logits."""
        logits: torch.Tensor = self.network(x).float()
        return logits


def divergence(teacher: torch.Tensor, student: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """T^2 * mean_i KL(softmax(teacher_i / T) || softmax(student_i / T)), in nats (Hinton et al. 2015).

    Args:
        teacher: `B x K` logits.
        student: `B x K` logits.
        temperature: T.

    Example:
        >>> logits = torch.tensor([[0.0, 0.0]])
        >>> round(float(divergence(logits, torch.tensor([[2.0, 2.0]]))), 6)
        0.0
    """
    log_student = functional.log_softmax(student.float() / temperature, dim=1)
    target = functional.softmax(teacher / temperature, dim=1)
    return functional.kl_div(log_student, target, reduction="sum") * temperature**2 / len(student)
