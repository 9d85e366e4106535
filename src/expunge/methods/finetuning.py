"""Common code of the gradient methods: a few epochs of masked steps from the original weights."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from expunge.core.errors import MethodError, unknown_name_hint
from expunge.core.show import plural
from expunge.core.trained import Trained
from expunge.data.records import Records
from expunge.training import batchnorm
from expunge.training.epochs.steps import AfterStep, Objective, Pass, Penalty, Steps, cross_entropy
from expunge.training.loop import Fit
from expunge.training.masked import Restriction
from expunge.training.recipes import Recipe
from expunge.training.recipes.checks import OPTIMISERS

from .base import Method
from .composition.restriction import SOURCES, Chosen, check_names, find_chosen, restrict
from .composition.stopping import STOPS, ForgetErrors, explain_stop
from .options import require_range
from .reads import Reads, Sizes
from .task import Task


@dataclasses.dataclass(frozen=True)
class FineTuning(Method):
    """Base class of methods that train for a few epochs at a constant learning rate.

    Attributes:
        epochs: passes over the records that the method trains on.
        learning_rate: constant learning rate.
        batch_size: records per step.
        momentum: of `sgd`; [Jia2023]: 0.9.
        weight_decay: as in the optimiser; [Jia2023]: 5e-4.
        optimiser: `sgd`, `adam` or `adamw`, those of `torch.optim`.
        clip_norm: the gradient is scaled down to this 2-norm if it is longer; 0: no clipping.
        batch_norm: treatment of the BatchNorm buffers: `train`, `frozen` or `re-estimate` (on D_r).
        augment: `as-trained` (the original's), `none`, or the name of an augmentation.
        only: names of the layers or parameters that may change; empty: all.
        saliency: fraction of the weights that may change; 1: all.
        saliency_source: which weights: those with the largest `gradient` of the loss on D_f, or `random` ones.
        stop: `never`, or `validation`: after the first epoch in which the forget error is at least that of validation
            records of the same classes.

    With `epochs=0` the method changes neither weights nor buffers (`re-estimate` still recomputes the buffers). With
    `learning_rate=0` it does not change the weights, but the buffers, unless they are `frozen`: in training mode every
    forward pass updates them.
    """

    epochs: int = 10
    learning_rate: float = 0.01
    batch_size: int = 256
    momentum: float = 0.9
    weight_decay: float = 5e-4
    optimiser: str = "sgd"
    clip_norm: float = 0.0
    batch_norm: str = "train"
    augment: str = "as-trained"
    only: tuple[str, ...] = ()
    saliency: float = 1.0
    saliency_source: str = "gradient"
    stop: str = "never"
    #: Whether it ascends: if the loss or a weight is not finite, the last good state is kept.
    ascends: ClassVar[bool] = False
    idle_if_zero: ClassVar[tuple[str, ...]] = ("epochs", "learning_rate")
    one_process: ClassVar[str] = ""

    def __post_init__(self) -> None:
        self._check_momentum()
        require_range(
            type(self).__name__,
            epochs=(self.epochs, self.epochs >= 0),
            learning_rate=(self.learning_rate, 0 <= self.learning_rate < math.inf),
            batch_size=(self.batch_size, self.batch_size >= 1),
            momentum=(self.momentum, 0 <= self.momentum < 1),
            weight_decay=(self.weight_decay, 0 <= self.weight_decay < math.inf),
            saliency=(self.saliency, 0 < self.saliency <= 1),
            clip_norm=(self.clip_norm, 0 <= self.clip_norm < math.inf),
            label_smoothing=(self.smoothing, 0 <= self.smoothing < 1),
        )
        batchnorm.check_mode(self.batch_norm)
        check_names(self.only)
        self.check_choice("saliency_source", SOURCES)
        self.check_choice("stop", STOPS)
        self.check_choice("optimiser", OPTIMISERS)

    @property
    def smoothing(self) -> float:
        """The option `label_smoothing`, which methods have that minimise the cross-entropy; 0 for the others."""
        return float(getattr(self, "label_smoothing", 0.0))

    def check_choice(self, option: str, known: Collection[str]) -> None:
        """Raise MethodError, with the nearest name, if the value of an option is not one of the known ones."""
        value = getattr(self, option)
        if value not in known:
            hint = unknown_name_hint(str(value), known)
            raise MethodError(f"unknown {option} {value!r}", where=f"{type(self).__name__}.{option}", hint=hint)

    def _check_momentum(self) -> None:
        """Raise MethodError if a momentum is given that the optimiser does not have."""
        optimiser = getattr(self, "optimiser", "sgd")
        given = {"momentum": self.momentum, "optimiser": optimiser}
        if self.momentum != type(self).momentum and optimiser in OPTIMISERS and self.drop_unused(given)[1]:
            raise MethodError(
                f"momentum has no effect with optimiser={optimiser}",
                where=f"{type(self).__name__}.momentum",
                hint="leave it out",
            )

    @classmethod
    def drop_unused(cls, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """See `Method.drop_unused`: the momentum, with an optimiser that has none."""
        unused = {"momentum"} if options.get("optimiser", getattr(cls, "optimiser", "sgd")) != "sgd" else set()
        dropped = {name: value for name, value in options.items() if name in unused}
        return {name: value for name, value in options.items() if name not in unused}, dropped

    def check_state(self, trained: Trained) -> None:
        """See `Method.check_state`.

        Raises:
            MethodError: `only` names no layer or parameter of the network.
        """
        find_chosen(trained.model, self.only)

    @property
    def needs_validation(self) -> str | None:
        """See `Method.needs_validation`: to stop."""
        return "stop" if self.epochs and self.stop != "never" else None

    @property
    def reads_retained(self) -> bool:
        """See `Method.reads_retained`: unless it trains on D_f alone, and re-estimates nothing."""
        return self.trains_on != "forget" or self.batch_norm == "re-estimate"

    def epoch_reads(self, sizes: Sizes) -> Reads:
        """The records that one epoch reads: those of D_f if it trains on D_f alone, else those of D_r."""
        return Reads(forget=sizes.forget) if self.trains_on == "forget" else Reads(retain=sizes.retain)

    def estimate_reads(self, trained: Trained, sizes: Sizes) -> Reads | None:
        """See `Method.estimate_reads`: its epochs, and what its options read besides."""
        found = self.epochs * self.epoch_reads(sizes)
        if self.epochs and self.saliency < 1 and self.saliency_source == "gradient":
            found = found + Reads(forget=sizes.forget)
        if self.epochs and self.stop != "never":
            measured = Reads(forget_forward=sizes.forget, other_forward=sizes.validation, at_most=True)
            found = found + self.epochs * measured
        if self.batch_norm == "re-estimate" and batchnorm.find_layers(trained.model):
            found = found + Reads(retain_forward=sizes.retain)
        return found

    def find_movable(self, task: Task) -> Chosen | None:
        """The part of `task.model` that may change; None: all of it. A method may choose it."""
        return find_chosen(task.model, self.only) if self.only else None

    def restrict(self, task: Task) -> Restriction | None:
        """The weights of `task.model` that may change, as its options say; None: all of them.

        Raises:
            MethodError: nothing could change.
        """
        return restrict(task, self.find_movable(task), self.saliency, self.saliency_source)

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
            optimiser=self.optimiser,
            clip_norm=self.clip_norm or None,
            label_smoothing=self.smoothing,
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
        restriction: Restriction | None = None,
    ) -> Fit:
        """Train the model of a task with its mask fixed, and treat the BatchNorm buffers as `batch_norm` says.

        Args:
            task: of `unlearn`.
            on: train on D_r (`retain`), on D_f (`forget`), or on both in one order (`both`).
            records: records to train on instead of the context's (the same rows with other labels).
            objective: `(B x K logits, B labels) -> scalar`.
            penalty: `(model, epoch) -> scalar or None`, added to the objective.
            after_step: `(model, epoch, learning rate)`, called after each masked step.
            restriction: the weights that may change; None: as the options say.
        """
        parts = {"retain": ("retain",), "forget": ("forget",), "both": ("retain", "forget")}[on]
        rows = np.concatenate([task.retain_rows if part == "retain" else task.forget_rows for part in parts])
        recipe = self.make_recipe(task.trained)
        steps = Steps(objective, penalty, after_step, batch_norm=self.batch_norm, restriction=restriction)
        found = task.fit(rows, recipe, steps=self.complete_steps(task, steps), records=records)
        self._finish(
            task, found, f"{plural(self.epochs, 'epoch')} on " + ("both sets" if on == "both" else f"the {on} set")
        )
        return found

    def run_passes(
        self,
        task: Task,
        passes: Sequence[Pass],
        steps: Steps | None = None,
        *,
        snapshots: Collection[int] = (),
        conclude: Callable[[Fit], str] | None = None,
    ) -> Fit:
        """Train the model of a task in passes over different sets; otherwise like `fine_tune`.

        Args:
            task: of `unlearn`.
            passes: in the order in which they run.
            steps: hooks; its passes, restriction, BatchNorm mode and stopping rule are set here.
            snapshots: passes after which to copy the state dict, counted from 1.
            conclude: called after the training, before buffers are re-estimated; it may change the model, and returns
                what is added to the history of the model.
        """
        recipe = dataclasses.replace(self.make_recipe(task.trained), epochs=len(passes))
        rows = np.unique(np.concatenate([np.zeros(0, np.int64), *(turn.rows for turn in passes if not turn.records)]))
        base = dataclasses.replace(steps or Steps(), batch_norm=self.batch_norm, passes=tuple(passes))
        found = task.fit(rows, recipe, steps=self.complete_steps(task, base), snapshots=snapshots)
        more = "" if conclude is None else conclude(found)
        self._finish(task, found, f"{len(passes)} passes", more)
        return found

    def complete_steps(self, task: Task, steps: Steps) -> Steps:
        """Return the steps with the restriction and the stopping rule of the options.

        Args:
            task: of `unlearn`; a saliency mask is computed for its model.
            steps: the other hooks.
        """
        if self.epochs == 0:
            return steps
        after_epoch = steps.after_epoch
        if after_epoch is None and self.stop in STOPS and self.stop != "never":
            after_epoch = ForgetErrors.make(task, "stop").check
        return dataclasses.replace(
            steps,
            restriction=steps.restriction or self.restrict(task),
            after_epoch=after_epoch,
            keep_last_good=self.ascends,
        )

    def _finish(self, task: Task, found: Fit, what: str, more: str = "") -> None:
        if self.batch_norm == "re-estimate":
            task.re_estimate(task.retain_rows, max(self.batch_size, batchnorm.ESTIMATION_BATCH))
        task.line += f" in {what}" + explain_stop(found.stopped) + more
