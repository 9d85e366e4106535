"""SalUn: random labels on the forget set, moving only the weights that are salient for it."""

from __future__ import annotations

import dataclasses

import numpy as np

from expunge.core.seeds import derive, mix
from expunge.data.corrections.values import replace_labels
from expunge.methods.random_label import RandomLabel, relabel
from expunge.methods.registry import register_method
from expunge.methods.task import Task
from expunge.training.epochs.steps import Pass


@register_method(
    "SalUn",
    guarantee="empirical",
    citation="[Fan2024]; its code",
    space={"epochs": [1, 2, 3, 5, 10], "learning_rate": (0.001, 0.1, "log"), "saliency": [0.1, 0.3, 0.5, 0.7, 0.9]},
)
@dataclasses.dataclass(frozen=True)
class SalUn(RandomLabel):
    """RL on the fraction `saliency` of the weights whose gradient of the loss on D_f is largest.

    The mask is |grad mean_{D_f} CE(f_theta_o(x), y)| >= gamma, in evaluation mode, with the true labels, over all
    parameters together, BatchNorm and biases too; gamma is such that the fraction `saliency` of the weights that the
    pruning mask keeps may move. Then sum_{D_r} CE(f_theta(x), y) + sum_{D_f} CE(f_theta(x), y') is minimised with wrong
    random labels y' as in RL. All other weights keep their values, whatever momentum and weight decay do. The control
    is `saliency_source="random"`: a random mask of the same size.

    It needs D_f and D_r with labels. Cost: a pass over D_f for the mask, then a pass over both sets in each epoch.

    The code (`legacy`) draws y' from all K classes, again in each epoch, and in each epoch passes over D_f first, then
    over D_r.

    Attributes:
        legacy: labels and order as in the code.
    """

    learning_rate: float = 0.013
    saliency: float = 0.5
    legacy: bool = False

    def unlearn(self, task: Task) -> None:
        """See `Method.unlearn`.

        Raises:
            MethodError: there is only one class, so there is no wrong label; or no weight may move.
        """
        if not self.legacy:
            super().unlearn(task)
            return
        relabel(task.context.records, task.request.record_ids, task.context.seed)  # refuses a single class
        passes = []
        for epoch in range(self.epochs):
            passes.append(self._make_forget_pass(task, epoch))
            passes.append(Pass(task.retain_rows, name="retain"))
        self.run_passes(task, passes)

    def _make_forget_pass(self, task: Task, epoch: int) -> Pass:
        records, rows = task.context.records, task.forget_rows
        drawn = mix(records.keys[rows], derive(task.seed, "labels", epoch)) % np.uint64(records.classes)
        labels = records.labels.copy()
        labels[rows] = drawn.astype(np.int64)
        return Pass(rows, records=replace_labels(records, labels), ends_round=False, name="forget")
