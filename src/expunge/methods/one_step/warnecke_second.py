"""Warnecke-2: one Newton step from the old values of the request to the new ones."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import ClassVar

import torch

from expunge.core.errors import MethodError, unknown_name_hint
from expunge.core.trained import Trained
from expunge.data.batches import Batch
from expunge.methods.base import Method
from expunge.methods.options import require_range
from expunge.methods.reads import Reads, Sizes
from expunge.methods.registry import register_method
from expunge.methods.task import Task
from expunge.sparsity import Schedule
from expunge.training.curvature import CURVATURES, Curvature, conjugate_gradient, lissa
from expunge.training.loop import cross_entropy

from .differences import add_to_weights, choose_names, find_decay, sum_gradient_change

SOLVERS = ("cg", "lissa")


@register_method(
    "Warnecke-2",
    guarantee="empirical",
    citation="[Warnecke2021], second-order update (section 4); its code, unlearn/core.py",
    corrects=True,
    space={"damping": (0.001, 1.0, "log")},
)
@dataclasses.dataclass(frozen=True)
class WarneckeSecond(Method):
    """Second-order update of Warnecke et al.: theta - H^-1 (sum_{Z'} grad l(z') - sum_Z grad l(z)).

    Z are the records of the request; Z' are the same records with their new labels or features, or empty for a removal.
    H is the Hessian of the summed loss over the training records after the request, with damping; l is the
    cross-entropy, with the weight decay of the training objective. For a quadratic loss at its minimum, the result is
    the retrained model; for others, one Newton step towards it. The equations are solved by conjugate gradients,
    starting from 0, and products with H; H is the Gauss-Newton matrix by default, which is the Hessian of a linear
    softmax model, and of a network its part without negative eigenvalues. Evaluation mode; the BatchNorm statistics do
    not change. Needs D_r and the labels. Cost: a pass over D_f (two for a correction), and about 2 passes over the
    training records for each product.

    The paper proves certified unlearning for strongly convex losses and noise in training; here nothing is certified.
    The released code solves by LiSSA on the last 6 tensors of its network. It takes the change of the summed gradient,
    but for H the Hessian of the summed loss of one batch of B = 1024 records instead of all n: its step is longer than
    a Newton step by the factor n / B where it converges (`legacy=True`). Its scale 2e5 and damping 1e-4 of the scaled
    matrix are 195.3 and 0.0195 for means over a batch: `solver="lissa"`, `legacy=True`, `curvature="hessian"`,
    `batch_size=1024`, `scale=195.3125`, `damping=0.01953125`, `weight_decay=0`, `last_tensors=6`. It shuffles the
    records once, takes at most 100 n / B steps, and ends when 20 of them no longer shorten the change of its vector;
    here they are read in order, `steps` times.

    Attributes:
        solver: `cg` (conjugate gradients) or `lissa`.
        steps: the most steps of conjugate gradients; of LiSSA, the products with one batch each.
        tolerance: residual, relative to the right-hand side, at which conjugate gradients end.
        scale: of LiSSA: above the largest eigenvalue of the damped curvature of every batch; not used by `cg`.
        damping: added to the eigenvalues of the mean Hessian; the default is this project's.
        curvature: `gauss-newton` or `hessian`; with the latter, steps end at a direction of negative curvature.
        last_tensors: change only the last tensors of the network; 0: all.
        weight_decay: of the training objective; None: that of the recorded recipe.
        batch_size: records in a forward pass, and in a step of LiSSA; with `cg` it only changes the rounding.
        legacy: H is the Hessian of the summed loss of one batch, as in the released code; with `lissa` only.
    """

    solver: str = "cg"
    steps: int = 20
    scale: float = 0.0
    tolerance: float = 1e-3
    damping: float = 1e-2
    curvature: str = "gauss-newton"
    last_tensors: int = 0
    weight_decay: float | None = None
    batch_size: int = 256
    legacy: bool = False
    #: The loss of training; expunge trains with the cross-entropy.
    objective: ClassVar[staticmethod[[torch.Tensor, torch.Tensor], torch.Tensor]] = staticmethod(cross_entropy)

    def __post_init__(self) -> None:
        require_range(
            "Warnecke-2",
            steps=(self.steps, self.steps >= 1),
            tolerance=(self.tolerance, 0 < self.tolerance < 1),
            damping=(self.damping, 0 <= self.damping < math.inf),
            last_tensors=(self.last_tensors, self.last_tensors >= 0),
            weight_decay=(self.weight_decay, self.weight_decay is None or 0 <= self.weight_decay < math.inf),
            batch_size=(self.batch_size, self.batch_size >= 1),
        )
        for option, value, known in (("curvature", self.curvature, CURVATURES), ("solver", self.solver, SOLVERS)):
            if value not in known:
                hint = unknown_name_hint(value, known)
                raise MethodError(f"unknown {option} {value!r}", where=f"Warnecke-2.{option}", hint=hint)
        if (self.solver == "lissa") != (self.scale > 0):
            what = "LiSSA needs a scale above 0" if self.solver == "lissa" else "the solver cg does not use scale"
            raise MethodError(what, where="Warnecke-2.scale", hint="solver=lissa with scale=200, for example")
        if self.legacy and self.solver != "lissa":
            raise MethodError(
                "the released code solves by LiSSA, so legacy has no effect with cg",
                where="Warnecke-2.legacy",
                hint="solver=lissa, scale=195.3125, damping=0.01953125, batch_size=1024",
            )

    def needed_curvature(self, schedule: Schedule | None) -> str | None:
        """See `Method.needed_curvature`."""
        return self.curvature

    def estimate_reads(self, trained: Trained, sizes: Sizes) -> Reads | None:
        """See `Method.estimate_reads`."""
        return (
            None
            if self.solver == "lissa"
            else Reads(retain=2 * (self.steps + 1) * sizes.retain, forget=sizes.forget, at_most=True)
        )

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
        change = sum_gradient_change(task, names, decay, self.batch_size, objective=self.objective)
        matrix = Curvature(
            task.model, lambda: _read(task, self.batch_size), task.mask, self.curvature,
            self._sum_over_batch if self.legacy else self.objective, self.damping + decay, names,
        )  # fmt: skip
        count = self.batch_size if self.legacy else len(task.retain_rows)
        right = {name: part / count for name, part in change.items()}  # the matrix is that of the mean
        if self.solver == "lissa":
            found = lissa(matrix, right, steps=self.steps, scale=self.scale)
        else:
            found = conjugate_gradient(matrix, right, steps=self.steps, tolerance=self.tolerance)
        add_to_weights(task, names, found.x, -1.0)
        entry = {"products": found.products, "damping": self.damping}
        task.history.append(entry if math.isnan(found.residual) else {**entry, "residual": found.residual})
        task.line += f" by one Newton step ({found.products} products)"

    def _sum_over_batch(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The sum of the losses of a batch over `batch_size`: their mean, but for a last batch with fewer records."""
        return self.objective(logits, labels) * (len(labels) / self.batch_size)


def _read(task: Task, batch_size: int) -> Iterator[Batch]:
    """The training records after the request; a product costs about two passes over them."""
    for x, y in task.read(task.retain_rows, batch_size):
        task.trained_records += len(x)
        yield x, y
