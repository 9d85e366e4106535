"""NTK: the shift between the solutions of the linearised network with and without the forget set."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from expunge.core.errors import MethodError, unknown_name_hint
from expunge.core.trained import Trained
from expunge.data.batches import Batch
from expunge.methods.base import Method
from expunge.methods.options import require_range
from expunge.methods.reads import Reads, Sizes
from expunge.methods.registry import register_method
from expunge.methods.start import check_start, find_start
from expunge.methods.task import Task
from expunge.models import Architecture
from expunge.sparsity import Schedule
from expunge.training.curvature import Curvature, Vector, combine, conjugate_gradient, gradient, parameters_of, project

from .differences import add_to_weights, find_decay

#: What the residual of a record is, which the linearised network fits in the least-squares sense.
RESIDUALS = ("softmax", "squared")
#: Where the network is linearised.
POINTS = ("trained", "initial")


@register_method(
    "NTK",
    guarantee="empirical",
    citation="[Golatkar2020b], section 4; its notebook",
    space={"scale": (0.1, 10.0, "log")},
)
@dataclasses.dataclass(frozen=True)
class NTK(Method):
    """Forgetting by the neural tangent kernel: theta + scale * (w_r - w), the solutions of the linearised network.

    The network is linearised at theta_a: f(x) + J(x) w. On records S, w_S minimises
    mean_S |r + J w|^2 / 2 + lambda / 2 |theta_a + w|^2, with the residual r = softmax(f) - e_y, or f - e_y: ridge
    regression in w. w is the solution on D, w_r that on D_r. For a linear model and the squared loss, the result is the
    retrained model. Solved by conjugate gradients in the primal, so that no matrix of |D| K columns is stored, which
    the notebook inverts. Evaluation mode; the BatchNorm statistics do not change. Needs D_r, D_f, the labels and the
    recorded weight decay. Cost: two passes and 2 * `steps` products, of about 2 passes over D each.

    The paper linearises at pretrained weights, and the notebook at the trained ones, without the term of theta_a in the
    penalty and with a scale that it finds from angles (`legacy=True` leaves out that term). Without pretraining, the
    trained weights are the point that the network is near, so they are the default. The Fisher noise that the paper
    adds is not part of this method.

    Attributes:
        point: where the network is linearised: `trained`, or `initial` (the weights that training started from).
        residual: `softmax` (the gradient of the cross-entropy) or `squared`.
        scale: factor of the shift.
        steps: the most steps of conjugate gradients for each solution.
        tolerance: residual, relative to the right-hand side, at which they end.
        weight_decay: lambda; None: that of the recorded recipe.
        batch_size: records in a forward pass; it does not change the result but for rounding.
        legacy: penalise w alone, as the notebook does.
    """

    point: str = "trained"
    residual: str = "softmax"
    scale: float = 1.0
    steps: int = 20
    tolerance: float = 1e-4
    weight_decay: float | None = None
    batch_size: int = 256
    legacy: bool = False
    idle_if_zero: ClassVar[tuple[str, ...]] = ("scale",)

    def __post_init__(self) -> None:
        require_range(
            "NTK",
            scale=(self.scale, 0 <= self.scale < math.inf),
            steps=(self.steps, self.steps >= 1),
            tolerance=(self.tolerance, 0 < self.tolerance < 1),
            weight_decay=(self.weight_decay, self.weight_decay is None or 0 < self.weight_decay < math.inf),
            batch_size=(self.batch_size, self.batch_size >= 1),
        )
        for name, value, known in (("point", self.point, POINTS), ("residual", self.residual, RESIDUALS)):
            if value not in known:
                raise MethodError(
                    f"unknown {name} {value!r}", where=f"NTK.{name}", hint=unknown_name_hint(value, known)
                )

    def needed_curvature(self, schedule: Schedule | None) -> str | None:
        """See `Method.needed_curvature`."""
        return "gauss-newton"

    def check_state(self, trained: Trained) -> None:
        """See `Method.check_state`.

        Raises:
            MethodError: with `point="initial"`, the network starts from the weights of the trained model, or the seed
                of its initial weights is not recorded; or the weight decay is unknown or 0.
        """
        if find_decay(trained, self.weight_decay, self.name) == 0:
            raise MethodError(
                "without weight decay the linearised network has no unique solution",
                where="NTK.weight_decay",
                hint="give one: weight_decay=0.0005",
            )
        if self.point == "initial" and trained.provenance.history:
            check_start(trained)
            if "initial" not in trained.provenance.seeds:
                raise MethodError(
                    "the seed of the initial weights is not recorded", where="NTK.point", hint="use point=trained"
                )

    def estimate_reads(self, trained: Trained, sizes: Sizes) -> Reads | None:
        """See `Method.estimate_reads`."""
        one = 1 + 2 * (self.steps + 1)  # the right-hand side, and at most so many products of two passes
        return Reads(retain=2 * one * sizes.retain, forget=one * sizes.forget, at_most=True)

    def unlearn(self, task: Task) -> None:
        """See `Method.unlearn`.

        Raises:
            MethodError: the shift is not finite.
        """
        decay = find_decay(task.trained, self.weight_decay, self.name)
        model = self._find_point(task)
        everything = np.concatenate([task.retain_rows, task.forget_rows])
        whole, products = self._solve(task, model, everything, decay)
        rest, more = self._solve(task, model, task.retain_rows, decay)
        add_to_weights(task, list(rest), combine(rest, -1.0, whole), self.scale)
        task.history.append({"products": products + more, "weight_decay": decay})
        task.line += f" by the shift of the linearised network ({products + more} products)"

    def _find_point(self, task: Task) -> nn.Module:
        """The network at which it is linearised: masked, on the device."""
        if self.point == "trained":
            return task.model
        seed = task.trained.provenance.seeds["initial"]
        architecture = Architecture.from_json(task.trained.provenance.architecture)
        model = task.context.runtime.place(find_start(task.trained, seed).build(architecture, seed))
        if task.mask is not None:
            task.mask.apply_(model)
        return model

    def _solve(self, task: Task, model: nn.Module, rows: NDArray[np.int64], decay: float) -> tuple[Vector, int]:
        """w on some records, and the number of products."""

        def read() -> Iterator[Batch]:
            task.trained_records += len(rows)
            yield from task.read(rows, self.batch_size)

        right = gradient(model, task.read(rows, self.batch_size), objective=_make_objective(self.residual))
        if not self.legacy:
            right = combine(right, decay, {name: w.detach() for name, w in parameters_of(model).items()})
        matrix = Curvature(model, read, task.mask, "gauss-newton", half_squares, decay)
        found = conjugate_gradient(matrix, project(right, task.mask), steps=self.steps, tolerance=self.tolerance)
        return {name: -part for name, part in found.x.items()}, found.products


def half_squares(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """mean |f - e_y|^2 / 2, summed over classes: its second derivative by the logits is the identity."""
    hot = functional.one_hot(labels, logits.shape[1]).to(logits.dtype)
    return 0.5 * (logits - hot).square().sum(1).mean()


def _make_objective(residual: str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """An objective whose gradient is the mean of J^T r."""
    if residual == "squared":
        return half_squares
    return lambda logits, labels: functional.cross_entropy(logits, labels)
