"""Common code of FT, GA, RL and l1-sparse: a few epochs of masked SGD from the original weights."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import numpy as np

from expunge.core.trained import Trained
from expunge.data.records import Records
from expunge.training import batchnorm
from expunge.training.loop import AfterStep, Objective, Penalty, Steps, cross_entropy
from expunge.training.recipes import Recipe

from .base import Method
from .options import require_range
from .task import Task


@dataclasses.dataclass(frozen=True)
class FineTuning(Method):
    """Base class of methods that train for a few epochs at a constant learning rate.

    Attributes:
        epochs: passes over the records that the method trains on.
        learning_rate: constant learning rate.
        batch_size: records per step.
        momentum, weight_decay: as in `torch.optim.SGD`; [Jia2023]: 0.9 and 5e-4.
        batch_norm: treatment of the BatchNorm buffers: `train`, `frozen` or `re-estimate` (on D_r).
        augment: `as-trained` (the original's), `none`, or the name of an augmentation.

    With `epochs=0` the method changes neither weights nor buffers (`re-estimate` still recomputes the buffers). With
    `learning_rate=0` it does not change the weights, but the buffers, unless they are `frozen`: in training mode every
    forward pass updates them.
    """

    epochs: int = 10
    learning_rate: float = 0.01
    batch_size: int = 256
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_norm: str = "train"
    augment: str = "as-trained"

    def __post_init__(self) -> None:
        require_range(
            type(self).__name__,
            epochs=(self.epochs, self.epochs >= 0),
            learning_rate=(self.learning_rate, 0 <= self.learning_rate < math.inf),
            batch_size=(self.batch_size, self.batch_size >= 1),
            momentum=(self.momentum, 0 <= self.momentum < 1),
            weight_decay=(self.weight_decay, 0 <= self.weight_decay < math.inf),
        )
        batchnorm.check_mode(self.batch_norm)

    def make_recipe(self, trained: Trained) -> Recipe:
        """Return the recipe of this method for a model."""
        augment = self.augment
        if augment == "as-trained":
            augment = str(trained.provenance.recipe.get("augment", "none"))
        return Recipe(
            name="fine-tuning",
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            augment=augment,
        )

    def fine_tune(
        self,
        task: Task,
        *,
        on: Literal["retain", "forget", "both"],
        records: Records | None = None,
        objective: Objective = cross_entropy,
        penalty: Penalty | None = None,
        after_step: AfterStep | None = None,
    ) -> None:
        """Train the model of a task with its mask fixed, and treat the BatchNorm buffers as `batch_norm` says.

        Args:
            task: of `unlearn`.
            on: train on D_r (`retain`), on D_f (`forget`), or on both in one order (`both`).
            records: records to train on instead of the context's (the same rows with other labels).
            objective: `(B x K logits, B labels) -> scalar`.
            penalty: `(model, epoch) -> scalar or None`, added to the objective.
            after_step: `(model, epoch, learning rate)`, called after each masked step.
        """
        parts = {"retain": ("retain",), "forget": ("forget",), "both": ("retain", "forget")}[on]
        rows = np.concatenate([task.retain_rows if part == "retain" else task.forget_rows for part in parts])
        recipe = self.make_recipe(task.trained)
        steps = Steps(objective, penalty, after_step, batch_norm=self.batch_norm)
        task.fit(rows, recipe, steps=steps, records=records)
        if self.batch_norm == "re-estimate":
            task.re_estimate(task.retain_rows, max(recipe.batch_size, batchnorm.ESTIMATION_BATCH))
        task.line += f" in {self.epochs} epochs on " + ("both sets" if on == "both" else f"the {on} set")
