"""One epoch of masked optimiser steps."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import nn

from expunge.core.errors import ModelError, TrainingError
from expunge.core.show import repr_fields
from expunge.data.batches import Batches
from expunge.training import batchnorm
from expunge.training.masked import MaskKeeper, ValueKeeper
from expunge.training.predict import check_logits
from expunge.training.progress import Progress
from expunge.training.recipes import Recipe
from expunge.training.runtime import Runtime

from .steps import Loss, Pass, Steps


class Sharing(Protocol):
    """Processes that share the batches of a run: `expunge.training.processes.team.Team`."""

    @property
    def split(self) -> contextlib.AbstractContextManager[Any]:
        """The context of a pass on the part of this process."""

    def start_step(self, epoch: int, step: int, size: int) -> None:
        """Have all processes start a step on a batch of `size` records."""

    def weigh(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss of the part, times its share of the batch."""

    def finish_step(self, loss: torch.Tensor) -> torch.Tensor:
        """Sum the gradients; return the loss of the batch."""

    def explain(self) -> contextlib.AbstractContextManager[Any]:
        """Turn a failed exchange into an error that says which process ended."""


#: Records on which the outputs of a state are checked before it is kept as a good one.
FEW = 4


@dataclasses.dataclass(frozen=True, eq=False)
class EpochLoop:
    """The values that all epochs of one run share, and the batches of the next one."""

    model: nn.Module
    batches: Batches
    recipe: Recipe
    runtime: Runtime
    seed: int
    optimiser: torch.optim.Optimizer
    keeper: MaskKeeper
    values: ValueKeeper
    steps: Steps
    frozen: bool
    progress: Progress | None
    label: str
    total: int
    clock: Callable[[], float]
    turn: Pass | None = None
    team: Sharing | None = None
    #: Inputs of the first few records that `describe_outputs` ran last; shared by all passes.
    few: dict[tuple[int, bytes], torch.Tensor] = dataclasses.field(default_factory=dict, repr=False)

    __repr__ = repr_fields

    def run_epoch(self, epoch: int, seen: int) -> tuple[float, float, int]:
        """Run one epoch.

        Returns:
            The mean objective per record, the last learning rate, and the number of the first step whose loss is not
            finite (0: all are).
        """
        model, hooks, steps = self.model, self.steps, len(self.batches)
        self._set_mode(self.frozen)
        rate = self._rate(epoch, 0.0)
        loss_sum = torch.zeros((), device=self.runtime.torch_device)
        losses = []
        reported_at = self.clock()
        for step, (x, y) in enumerate(self.batches.epoch(self.seed, epoch)):
            size = self.batches.sizes[step]
            rate = self._rate(epoch, step / steps)
            for group in self.optimiser.param_groups:
                group["lr"] = rate
            if size == 1:  # one record has no batch variance: normalise with the running statistics
                self._set_mode(True)
            if self.team is not None:
                self.team.start_step(epoch, step, size)
            with self._split(), self.runtime.autocast():
                loss = self._loss(self._called, x, y)
            extra = None if hooks.penalty is None else hooks.penalty(model, epoch)
            self.optimiser.zero_grad(set_to_none=True)
            if self.team is not None:
                loss = self.team.weigh(loss)
            with self._split():
                self.runtime.backward(loss if extra is None else loss + extra)
            if self.team is not None:
                loss = self.team.finish_step(loss)
            self.values.before_step()
            self.keeper.before_step()
            if self.recipe.clip_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), self.recipe.clip_norm)
            self.optimiser.step()
            self.values.after_step()
            self.keeper.after_step()
            if hooks.after_step is not None:
                hooks.after_step(model, epoch, rate)
                self.values.after_step()
            loss_sum += loss.detach() * size
            losses.append(loss.detach())
            seen += size
            if self.progress is not None and (self.clock() - reported_at > 0.2 or seen >= self.total):
                reported_at = self.clock()
                self.progress(self.label, seen, self.total, {"epoch": epoch + 1, "loss": float(loss.detach())})
        mean = float(loss_sum) / max(1, self.batches.count)
        return mean, rate, 0 if math.isfinite(mean) else _find_first(losses)

    def _rate(self, epoch: int, fraction: float) -> float:
        if self.turn is not None and self.turn.rate is not None:
            return self.turn.rate(fraction)
        return self.recipe.rate(epoch + fraction, len(self.batches))

    @functools.cached_property
    def _loss(self) -> Loss:
        return self.steps.make_loss(self.turn, self.recipe.label_smoothing)

    @functools.cached_property
    def _called(self) -> nn.Module:
        """What the loss calls: the model, or its compiled form."""
        return self.runtime.compiled(self.model)

    @contextlib.contextmanager
    def _split(self) -> Iterator[None]:
        """The context of the passes of a step: on a part of the batch, or on the whole batch."""
        if self.team is None:
            yield
        else:
            with self.team.explain(), self.team.split:
                yield

    def _set_mode(self, frozen: bool) -> None:
        batchnorm.set_training_mode(self.model, frozen=frozen, input_shape=self.batches.records.input_shape)
        self.values.set_mode()

    def describe_divergence(self, mean: float, step: int, epoch: int) -> str:
        """What is not finite after an epoch, and where; empty if everything is."""
        if step:
            where = f"step {step} of {len(self.batches)}"
            if self.turn is not None and self.turn.name:
                where += f" of pass {self.turn.name!r}"
            return f"the loss of epoch {epoch + 1} is {mean} (from {where} on)"
        if self.steps.keep_last_good and not _is_finite(self.model):
            return f"a weight or a running statistic is not finite after epoch {epoch + 1}"
        return ""

    def describe_outputs(self, epoch: int) -> str:
        """What is wrong with the outputs on the first few records after an epoch; empty if they are finite.

        Finite weights can be so large that the outputs are not. Call it where draws from the global generators are
        undone: a model may draw in evaluation mode.
        """
        rows, records = self.batches.rows[:FEW], self.batches.records
        key = (id(records), rows.tobytes())
        try:
            if key not in self.few:
                first = dataclasses.replace(self.batches, rows=rows, batch_size=FEW, part=(0, 1))
                self.few.clear()
                self.few[key] = torch.cat([x for x, _ in first.in_order()])
            with self.runtime.inference_mode(self.model):
                check_logits(self.model(self.few[key]), records.classes)
        except ModelError as error:
            return f"after epoch {epoch + 1}, {error.what}"
        return ""

    def make_error(self, what: str) -> TrainingError:
        """The error of a divergence."""
        return TrainingError(what, where=self.label, hint="lower the learning rate, or check the records")


def _find_first(losses: list[torch.Tensor]) -> int:
    """The number of the first loss that is not finite, from 1; that of the last if only their sum is not."""
    bad = (~torch.isfinite(torch.stack(losses))).nonzero() if losses else torch.zeros(0)
    return int(bad[0, 0]) + 1 if len(bad) else len(losses)


def _is_finite(model: nn.Module) -> bool:
    """Whether all weights and running statistics are finite. A finite sum has finite terms; others are looked at."""
    tensors = [t.detach() for t in model.state_dict().values() if t.is_floating_point()]
    sums = [t.sum(dtype=torch.float32) for t in tensors]
    if not sums or bool(torch.isfinite(torch.stack(sums)).all()):
        return True
    return all(bool(torch.isfinite(t).all()) for t in tensors)
