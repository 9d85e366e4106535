"""Boundary Shrink: relabel the forget set with the nearest wrong class, found by an adversarial step."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from expunge.core.errors import RequestError
from expunge.core.mask import Mask
from expunge.core.request import ForgetRequest
from expunge.core.trained import Trained, clone_model
from expunge.data.corrections.values import replace_labels
from expunge.data.records import Records
from expunge.methods.changed_inputs import find_discrete_features
from expunge.methods.finetuning import FineTuning
from expunge.methods.options import require_range
from expunge.methods.reads import Reads, Sizes
from expunge.methods.registry import register_method
from expunge.methods.task import Task
from expunge.training.epochs.steps import cross_entropy


@register_method(
    "Boundary Shrink",
    guarantee="empirical",
    citation="[Chen2023], Boundary Shrink; its code",
    space={"epochs": [2, 5, 10], "learning_rate": (1e-5, 0.01, "log"), "radius": (0.03, 0.3, "log")},
)
@dataclasses.dataclass(frozen=True)
class BoundaryShrink(FineTuning):
    """Fine-tune on D_f with the label of the nearest wrong class: that of an adversarial neighbour.

    x' = x + radius * sign(grad_x CE(f_theta_o(x), y)), y' = argmax_{k != y} f_theta_o(x')_k, with the original in
    evaluation mode; pixels (uint8 records) stay in [0, 1]. Then mean_{D_f} CE(f_theta(x), y') is minimised. The labels
    are found once, from the records without augmentation. D_r is not read, unless BatchNorm buffers are re-estimated.
    It needs D_f with labels. Cost: a pass and a forward pass over D_f for the labels, then a pass over D_f in each
    epoch.

    The code (`legacy`) takes the argmax over all classes, so that a record whose neighbour keeps its label is trained
    on its true label, and rounds pixels to 1/255. Records with discrete features are refused: x + radius *
    sign(gradient) is not such a record, so the network's output there says nothing. The learning rate is ours.

    Attributes:
        radius: of the adversarial step, in units of the model's input; 0.1 in the paper.
        legacy: labels as in the code.
    """

    learning_rate: float = 1e-4
    radius: float = 0.1
    legacy: bool = False
    trains_on: ClassVar[str | None] = "forget"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("Boundary Shrink", radius=(self.radius, 0 < self.radius < math.inf))

    def check_request(self, model: nn.Module, mask: Mask | None, request: ForgetRequest, records: Records) -> None:
        """See `Method.check_request`.

        Raises:
            RequestError: the features are discrete, or there is only one class.
        """
        reason = find_discrete_features(records)
        if reason:
            raise RequestError(
                f"the records have no adversarial neighbours: {reason}, and x + radius * sign(gradient) is not such a "
                "record",
                where="Boundary Shrink",
                hint="use RL, whose wrong labels need no neighbours",
            )
        if records.classes < 2:
            raise RequestError("Boundary Shrink needs at least two classes", where=records.name)

    def estimate_reads(self, trained: Trained, sizes: Sizes) -> Reads | None:
        """See `Method.estimate_reads`."""
        found = super().estimate_reads(trained, sizes)
        if found is None or not self.epochs:
            return found
        return found + Reads(forget=sizes.forget, forget_forward=sizes.forget)

    def unlearn(self, task: Task) -> None:
        """See `Method.unlearn`."""
        records = task.context.records
        labels = records.labels.copy()
        if self.epochs:
            labels[task.forget_rows] = self._find_labels(task)
        self.fine_tune(task, on="forget", records=replace_labels(records, labels))

    def _find_labels(self, task: Task) -> np.ndarray:
        network = task.context.runtime.place(clone_model(task.trained.model)).eval().requires_grad_(False)
        is_image = task.context.records.dtype == "uint8"
        found = []
        for x, y in task.read(task.forget_rows):
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(cross_entropy(network(x), y), x)
            near = x.detach() + self.radius * gradient.sign()
            if is_image:
                near = near.clamp(0, 1)
                near = (near * 255).round() / 255 if self.legacy else near
            with torch.no_grad():
                logits = network(near).float()
            task.forward_records += len(x)
            if not self.legacy:
                logits = logits.scatter(1, y[:, None], -math.inf)
            found.append(logits.argmax(1).cpu())
        labels: np.ndarray = torch.cat(found).numpy()
        return labels
