"""SSD: dampen the weights that are more important for the forget set than for all training records."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from expunge.core.errors import MethodError, unknown_name_hint
from expunge.core.hashing import plain_parameters
from expunge.core.trained import Trained
from expunge.data.batches import Batch
from expunge.methods.base import Method
from expunge.methods.composition.restriction import check_names, find_chosen
from expunge.methods.options import require_range
from expunge.methods.reads import Reads, Sizes
from expunge.methods.registry import register_method
from expunge.methods.task import Task
from expunge.training import curvature


@register_method(
    "SSD",
    guarantee="empirical",
    citation="[Foster2024], equations 4 and 5; its code",
    space={"alpha": (1.0, 100.0, "log"), "dampening": (0.1, 1.0, "log")},
)
@dataclasses.dataclass(frozen=True)
class SSD(Method):
    """Multiply each weight with F_f > alpha F_D by min(1, dampening F_D / F_f); all others keep their values.
    Nothing is trained.

    F_f and F_D are the diagonals of the Fisher information over D_f and over all of D, D_f included: means over
    records of the squared gradient of each record's loss, in evaluation mode. Since F_D = (|D_r| F_r + |D_f| F_f) /
    |D|, the ratio F_f / F_D is at most |D| / |D_f|: with a larger alpha, no weight is dampened. BatchNorm
    parameters are dampened too, running statistics not. It needs D_f and D_r, with labels for `fisher="empirical"`.
    Cost: one pass over D (`exact`: one forward and K - 1 backward passes). It draws nothing from the seed, unless
    `sampled`.

    The code (`legacy`) squares the gradient of each batch's mean loss, which shrinks with the batch size, and averages
    over batches.

    Attributes:
        alpha: how much more important a weight must be for D_f; 10 in the paper.
        dampening: lambda in the paper, 1.
        fisher: `empirical` (the labels of the records), `exact` (all labels, weighted) or `sampled`.
        batch_size: records in a batch.
        only: names of the layers or parameters that may change; empty: all.
        legacy: squares of batches, as in the code.
    """

    alpha: float = 10.0
    dampening: float = 1.0
    fisher: str = "empirical"
    batch_size: int = 256
    only: tuple[str, ...] = ()
    legacy: bool = False

    def __post_init__(self) -> None:
        require_range(
            "SSD",
            alpha=(self.alpha, 0 <= self.alpha < math.inf),
            dampening=(self.dampening, 0 <= self.dampening < math.inf),
            batch_size=(self.batch_size, self.batch_size >= 1),
        )
        check_names(self.only)
        if self.fisher not in curvature.FISHERS:
            hint = unknown_name_hint(self.fisher, curvature.FISHERS)
            raise MethodError(f"unknown fisher {self.fisher!r}", where="SSD.fisher", hint=hint)
        if self.legacy and self.fisher != "empirical":
            raise MethodError("the code has the labels of the records", where="SSD.fisher", hint="leave it out")

    def check_state(self, trained: Trained) -> None:
        """See `Method.check_state`.

        Raises:
            MethodError: `only` names no layer or parameter of the network.
        """
        find_chosen(trained.model, self.only)

    def estimate_reads(self, trained: Trained, sizes: Sizes) -> Reads | None:
        """See `Method.estimate_reads`."""
        factor = max(1, sizes.classes - 1) if self.fisher == "exact" and not self.legacy else 1
        twice = 2 if self.legacy else 1
        return factor * Reads(retain=sizes.retain, forget=twice * sizes.forget)

    def unlearn(self, task: Task) -> None:
        """See `Method.unlearn`."""
        forget_rows, retain_rows = task.forget_rows, task.retain_rows
        forget = self._compute_importance(task, forget_rows)
        if self.legacy:
            everything = self._compute_importance(task, np.sort(np.concatenate([retain_rows, forget_rows])))
        else:
            rest, count = self._compute_importance(task, retain_rows), len(retain_rows) + len(forget_rows)
            everything = {
                name: (len(retain_rows) * rest[name] + len(forget_rows) * forget[name]) / count for name in rest
            }
        changed, total = self._dampen(task, forget, everything)
        task.line += f"; {changed} of {total} weights dampened"

    def _names(self, task: Task) -> list[str]:
        """The parameters that may change: chosen, and not frozen."""
        chosen = find_chosen(task.model, self.only).parameters if self.only else None
        return [
            name
            for name, parameter in plain_parameters(task.model).items()
            if parameter.requires_grad and (chosen is None or name in chosen)
        ]

    def _compute_importance(self, task: Task, rows: NDArray[np.int64]) -> curvature.Vector:
        names, model = self._names(task), task.model
        if self.legacy:
            return _square_batches(task, task.read(rows, self.batch_size), names)
        if self.fisher == "exact":
            task.trained_records += max(0, task.context.records.classes - 2) * len(rows)
        return curvature.diagonal_fisher(
            model, task.read(rows, self.batch_size), kind=self.fisher, mask=task.mask, names=names, seed=task.seed
        )

    @torch.no_grad()
    def _dampen(self, task: Task, forget: curvature.Vector, everything: curvature.Vector) -> tuple[int, int]:
        """Dampen the model of a task; return how many weights, of how many."""
        parameters, changed = plain_parameters(task.model), 0
        for name, importance in forget.items():
            chosen = importance > self.alpha * everything[name]
            ratio = self.dampening * everything[name] / importance.clamp(min=torch.finfo(importance.dtype).tiny)
            parameter = parameters[name]
            parameter.copy_(torch.where(chosen, parameter * ratio.clamp(max=1), parameter))
            changed += int(chosen.sum())
        return changed, sum(parameters[name].numel() for name in forget)


def _square_batches(task: Task, batches: Iterator[Batch], names: list[str]) -> curvature.Vector:
    """The mean over batches of the squared gradient of their mean loss."""
    total: curvature.Vector = {}
    count = 0
    for batch in batches:
        squares = {
            name: tensor.square() for name, tensor in curvature.gradient(task.model, [batch], names=names).items()
        }
        total = {name: tensor + total[name] if total else tensor for name, tensor in squares.items()}
        count += 1
    return {name: tensor / count for name, tensor in total.items()}
