"""Warnecke-1: one gradient step from the old values of the request to the new ones."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

from expunge.core.trained import Trained
from expunge.methods.base import Method
from expunge.methods.options import require_range
from expunge.methods.reads import Reads, Sizes
from expunge.methods.registry import register_method
from expunge.methods.task import Task

from .differences import add_to_weights, choose_names, find_decay, sum_gradient_change


@register_method(
    "Warnecke-1",
    guarantee="empirical",
    citation="[Warnecke2021], first-order update (section 4); its code, unlearn/core.py",
    corrects=True,
    space={"tau": (1e-7, 0.001, "log")},
)
@dataclasses.dataclass(frozen=True)
class WarneckeFirst(Method):
    """First-order update of Warnecke et al.: theta - tau (sum_{Z'} grad l(z') - sum_Z grad l(z)).

    Z are the records of the request; Z' are the same records with their new labels or features, or empty for a removal.
    l is the cross-entropy, with the weight decay of the training objective. The gradients are taken at the original
    weights, in evaluation mode. D_r is not read. Needs the labels. Cost: one pass over D_f, and one over its corrected
    records.

    The paper proves certified unlearning for strongly convex losses and noise in training; here nothing is certified.
    The released code takes only the last 6 tensors of its network (`last_tensors=6`). It sums over records as here: its
    loss returns one number a record, and the gradient of several numbers is that of their sum in TensorFlow.

    Attributes:
        tau: unlearning rate.
        last_tensors: change only the last tensors of the network; 0: all.
        weight_decay: of the training objective; None: that of the recorded recipe.
        batch_size: records in a forward pass; it does not change the result but for rounding.
    """

    tau: float = 2e-5
    last_tensors: int = 0
    weight_decay: float | None = None
    batch_size: int = 256
    idle_if_zero: ClassVar[tuple[str, ...]] = ("tau",)

    def __post_init__(self) -> None:
        require_range(
            "Warnecke-1",
            tau=(self.tau, 0 <= self.tau < math.inf),
            last_tensors=(self.last_tensors, self.last_tensors >= 0),
            weight_decay=(self.weight_decay, self.weight_decay is None or 0 <= self.weight_decay < math.inf),
            batch_size=(self.batch_size, self.batch_size >= 1),
        )

    @property
    def reads_retained(self) -> bool:
        """See `Method.reads_retained`."""
        return False

    def estimate_reads(self, trained: Trained, sizes: Sizes) -> Reads | None:
        """See `Method.estimate_reads`."""
        return Reads(forget=sizes.forget)

    def check_state(self, trained: Trained) -> None:
        """See `Method.check_state`.

        Raises:
            MethodError: the weight decay is neither given nor recorded.
        """
        find_decay(trained, self.weight_decay, self.name)

    def unlearn(self, task: Task) -> None:
        """See `Method.unlearn`.

        Raises:
            MethodError: the weight decay is unknown, or the step is not finite.
        """
        names, decay = choose_names(task, self.last_tensors), find_decay(task.trained, self.weight_decay, self.name)
        change = sum_gradient_change(task, names, decay, self.batch_size)
        add_to_weights(task, names, change, -self.tau)
        task.line += " by one gradient step"
