"""IU: influence unlearning, one Newton step towards the weights of training without D_f."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

from expunge.core.errors import MethodError, unknown_name_hint
from expunge.core.hashing import plain_parameters
from expunge.core.trained import Trained
from expunge.methods.options import require_range
from expunge.methods.reads import Reads, Sizes
from expunge.methods.registry import register_method
from expunge.methods.task import Task
from expunge.sparsity import Schedule
from expunge.training.curvature import CURVATURES, FISHERS, Vector, check_finite, gradient, project

from .influence_options import InfluenceOptions
from .inverses import INVERSES, Inverse
from .released_iu import N, apply_released_inverse


@register_method(
    "IU",
    guarantee="empirical",
    citation="[Jia2023], section 3; Koh and Liang, ICML 2017",
    space={"alpha": (0.3, 3.0, "log"), "damping": (1e-4, 1.0, "log")},
)
@dataclasses.dataclass(frozen=True)
class InfluenceUnlearning(InfluenceOptions):
    """Take one damped Newton step from the original weights towards those of training without D_f.

    theta_u = theta_o + alpha * (C + damping * I)^-1 v, where v = grad L_D - grad L_r = (N_f / N) (g_f - g_r) on the
    kept weights: g_f and g_r are the gradients of the mean loss on D_f and D_r, and N = N_f + N_r. C is the curvature
    of the mean loss on `records` records of D_r. A gradient of L_D that is left because the original was not trained to
    its optimum cancels in v. For a quadratic loss with the penalty (damping / 2) |theta|^2, the step with alpha = 1
    ends at the optimum without D_f exactly.

    In a network the step is local: the damping and the number of steps of conjugate gradients limit its length, and
    both are part of the definition. The outcome's history has the number of products and the relative residual.

    With `legacy=True`, the inverse is that of the released code of [Jia2023], which is meant as WoodFisher, but keeps
    one vector: v minus a multiple of the gradient of the first retained record, from about 1,000 records.
    """

    idle_if_zero: ClassVar[tuple[str, ...]] = ("alpha",)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(
            "IU",
            alpha=(self.alpha, math.isfinite(self.alpha)),
            damping=(self.damping, 0 < self.damping < math.inf),
            steps=(self.steps, self.steps >= 1),
            tolerance=(self.tolerance, 0 <= self.tolerance < math.inf),
            records=(self.records, self.records >= 0),
            lissa_steps=(self.lissa_steps, self.lissa_steps >= 1),
            lissa_scale=(self.lissa_scale, 0 <= self.lissa_scale < math.inf),
        )
        for option, known in (("inverse", INVERSES), ("curvature", CURVATURES), ("fisher", FISHERS)):
            value = getattr(self, option)
            if value not in known:
                raise MethodError(
                    f"unknown {option} {value!r}", where=f"IU.{option}", hint=unknown_name_hint(value, known)
                )

    @classmethod
    def unused_options(cls, options: Mapping[str, Any]) -> dict[str, str]:
        """See `WeightEdit.unused_options`."""
        every = {name for inverse in INVERSES.values() for name in inverse.uses}
        if options.get("legacy", cls.legacy) is True:
            return dict.fromkeys([*every, "inverse"], "legacy=True")
        name = options.get("inverse", cls.inverse)
        if name not in INVERSES:
            return {}
        return dict.fromkeys(every - set(INVERSES[name].uses), f"inverse={name}")

    def needed_curvature(self, schedule: Schedule | None) -> str | None:
        """See `Method.needed_curvature`."""
        if self.legacy:
            return "gauss-newton"  # products with the Jacobian
        return self.curvature if self._inverse.takes_products else None

    @property
    def _inverse(self) -> Inverse:
        return INVERSES[self.inverse]

    def estimate_reads(self, trained: Trained, sizes: Sizes) -> Reads | None:
        """See `Method.estimate_reads`."""
        found = Reads(retain=sizes.retain, forget=sizes.forget) + self.re_estimation_reads(trained, sizes)
        sample = min(self.records or sizes.retain, sizes.retain)
        if self.legacy:
            return found + Reads(retain=1 + 2 * min(N + 2, sizes.retain))
        layers = len({name.rpartition(".")[0] for name in plain_parameters(trained.model)})
        per_sample = self._inverse.count_passes(self, sizes.classes, layers)
        return found + Reads(retain=per_sample * sample, at_most=self._inverse.takes_products)

    def unlearn(self, task: Task) -> None:
        """See `Method.unlearn`.

        Raises:
            TrainingError: a gradient, a product with the curvature or a weight after the step is not finite, or `lissa`
                diverges.
        """
        self.check_task(task)
        v = self.compute_gradient(task)
        if self.legacy:
            step = apply_released_inverse(task, v, self.batch_size)
        else:
            solution = self._inverse.solve(self, task, v)
            step = solution.x
            residual = solution.residual if math.isfinite(solution.residual) else None
            task.history.append(
                {"products": solution.products, "residual": residual, "damping": self.damping, "inverse": self.inverse}
            )
        self.finish(task, project({name: self.alpha * tensor for name, tensor in step.items()}, task.mask))
        task.line += " by a rank-one influence step" if self.legacy else f" by an influence step ({self.inverse})"

    def compute_gradient(self, task: Task) -> Vector:
        """Return v = (N_f / N) (g_f - g_r) on the kept weights; one pass over D_f and one over D_r are counted."""
        forget_grad = gradient(task.model, task.read(task.forget_rows, self.batch_size))
        retain_grad = gradient(task.model, task.read(task.retain_rows, self.batch_size))
        removed = len(task.forget_rows) / (len(task.forget_rows) + len(task.retain_rows))
        v = {name: removed * (tensor - retain_grad[name]) for name, tensor in forget_grad.items()}
        check_finite(v, "the difference of the gradients on the forget and the retain set")
        return project(v, task.mask)
