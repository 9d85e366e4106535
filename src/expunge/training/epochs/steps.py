"""What the steps of a training run compute: objectives, hooks, and passes over different sets of records."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from expunge.core.errors import ConfigError, unknown_name_hint
from expunge.core.mask import Mask
from expunge.core.seeds import RecordedOrder
from expunge.core.show import repr_fields
from expunge.data.records import Records
from expunge.training.masked import Restriction
from expunge.training.recipes.checks import OPTIMISERS

Objective = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Loss = Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]
Penalty = Callable[[nn.Module, int], torch.Tensor | None]
AfterStep = Callable[[nn.Module, int, float], None]
BeforeEpoch = Callable[[nn.Module, int], Mask | None]
_Marked = TypeVar("_Marked")


def mean_over_records(loss: _Marked) -> _Marked:
    """Declare that an objective or a loss is a mean over the records of the batch, with nothing else in it.

    Then its gradient on a batch is the average of those on the parts, weighted by their numbers of records, and several
    processes can share a batch (docs/scaling.md).

    Args:
        loss: an objective or a loss; it can be sent to other processes if it is a function of a module, or an instance
            of a class of a module.

    >>> from torch.nn import functional
    >>> from expunge.training import mean_over_records
    >>> @mean_over_records
    ... def focal(logits, labels):
    ...     log_p = -functional.cross_entropy(logits, labels, reduction="none")
    ...     return -((1 - log_p.exp()) ** 2 * log_p).mean()
    """
    loss.is_mean_over_records = True  # type: ignore[attr-defined]
    return loss


def explain_unsplit(steps: Steps) -> str:
    """Why the losses of some steps cannot be computed on parts of a batch; empty if they can.

    Args:
        steps: of a training run.
    """
    losses: list[Any] = [steps.objective, *(turn.loss for turn in steps.passes or () if turn.loss is not None)]
    unmarked = [loss for loss in losses if not getattr(loss, "is_mean_over_records", False)]
    name = getattr(unmarked[0], "__qualname__", type(unmarked[0]).__name__) if unmarked else ""
    return f"the loss {name!r} is not declared to be a mean over records" if unmarked else ""


@mean_over_records
def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Compute the mean cross-entropy of logits, in nats: -mean_i log softmax(logits_i)[labels_i].

    Args:
        logits: `B x K`, cast to float32.
        labels: `B` class indices.

    >>> import torch
    >>> from expunge.training import cross_entropy
    >>> round(float(cross_entropy(torch.zeros(3, 4), torch.tensor([0, 1, 3]))), 3)  # log 4
    1.386
    """
    return functional.cross_entropy(logits.float(), labels)


def smooth_objective(objective: Objective, smoothing: float) -> Objective:
    """Return `cross_entropy` with label smoothing s: the target is 1 - s for the class, plus s / K for each class.

    Args:
        objective: any other objective is returned as it is.
        smoothing: s, in [0, 1).
    """
    if objective is not cross_entropy or smoothing == 0:
        return objective
    return lambda logits, labels: functional.cross_entropy(logits.float(), labels, label_smoothing=smoothing)


@dataclasses.dataclass(frozen=True)
class EpochCheck:
    """What `Steps.after_epoch` found.

    Attributes:
        stop: the reason to end the training now, or empty.
        entry: further values for the history of the epoch.
        forward_records: records that went forward for it.
    """

    stop: str = ""
    entry: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    forward_records: int = 0

    __repr__ = repr_fields


AfterEpoch = Callable[[nn.Module, int], EpochCheck]


@dataclasses.dataclass(frozen=True, eq=False)
class Pass:
    """One pass over some records: an epoch of a run whose epochs differ.

    Attributes:
        rows: row numbers of the records.
        loss: `(model, inputs, labels of a batch) -> scalar`; None: the objective of the run.
        records: the records that `rows` numbers; None: those of the context.
        batch_size: records in a step; None: that of the recipe.
        rate: the learning rate at a fraction of the pass in [0, 1); None: that of the recipe.
        weight_decay: None: that of the recipe.
        momentum: passes of one name share their momentum.
        more_trained, more_forward: further records that go forward and backward, or only forward, in this pass.
        ends_round: a model after this pass is one that may be returned: `Steps.after_epoch` is called, and the state
            is the last good one.
        name: for the history.
    """

    rows: NDArray[np.int64]
    loss: Loss | None = None
    records: Records | None = None
    batch_size: int | None = None
    rate: Callable[[float], float] | None = None
    weight_decay: float | None = None
    momentum: str = ""
    more_trained: int = 0
    more_forward: int = 0
    ends_round: bool = True
    name: str = ""

    __repr__ = repr_fields


@dataclasses.dataclass(frozen=True, eq=False)
class Steps:
    """What the steps of a training run do.

    Each step computes objective + penalty, backpropagates, sets the gradients of masked weights to 0, clips the
    gradient if the recipe says so, takes an optimiser step, sets masked weights to +0.0, and calls `after_step`.

    Attributes:
        objective: `(B x K logits, B labels) -> scalar`; `cross_entropy` has the label smoothing of the recipe.
        penalty: `(model, epoch) -> scalar or None`, added to the objective.
        after_step: `(model, epoch, learning rate)`, called after the masked step (a proximal map, for example).
        before_epoch: `(model, epoch) -> mask or None`; a mask replaces the previous one from this epoch on (pruning
            during training). It may depend on model and epoch only, so that a resumed run repeats it.
        batch_norm: a key of `expunge.training.batchnorm.MODES`.
        restriction: weights that keep their values; None: all may move.
        passes: one for each epoch of the recipe, if the epochs differ; None: each epoch is over the given rows.
        after_epoch: `(model, epoch) -> EpochCheck`, called after each epoch that ends a round; it can end the training.
        keep_last_good: if a loss, a weight or an output on the first few records is not finite, end the training with
            the state of the last round in which all were, instead of an error. There is an error if it is in the first
            round.
        order: the order of records in each epoch, as recorded elsewhere; None: by the seed.
        optimiser: an optimiser instead of the recipe's; None: the recipe's.
    """

    objective: Objective = cross_entropy
    penalty: Penalty | None = None
    after_step: AfterStep | None = None
    before_epoch: BeforeEpoch | None = None
    batch_norm: str = "train"
    restriction: Restriction | None = None
    passes: tuple[Pass, ...] | None = None
    after_epoch: AfterEpoch | None = None
    keep_last_good: bool = False
    optimiser: str | None = None
    order: RecordedOrder | None = None

    __repr__ = repr_fields

    def __post_init__(self) -> None:
        if self.optimiser is not None and self.optimiser not in OPTIMISERS:
            hint = unknown_name_hint(self.optimiser, OPTIMISERS)
            raise ConfigError(f"unknown optimiser {self.optimiser!r}", where="optimiser", hint=hint)

    def pass_of(self, epoch: int) -> Pass | None:
        """The pass of an epoch; None if all epochs are alike."""
        return None if self.passes is None else self.passes[epoch]

    def make_loss(self, turn: Pass | None, smoothing: float) -> Loss:
        """The loss of the steps of a pass: its own, or the objective of the logits.

        Args:
            turn: the pass, or None.
            smoothing: label smoothing of the recipe.
        """
        if turn is not None and turn.loss is not None:
            return turn.loss
        objective = smooth_objective(self.objective, smoothing)
        return lambda model, x, y: objective(model(x), y)
