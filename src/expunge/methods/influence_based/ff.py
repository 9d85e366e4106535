"""FF: Fisher forgetting, Gaussian noise on the weights that is small where the retain set needs them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from expunge.core.errors import MethodError, unknown_name_hint
from expunge.core.seeds import torch_generator
from expunge.core.trained import Trained
from expunge.methods.options import require_range
from expunge.methods.reads import Reads, Sizes
from expunge.methods.registry import register_method
from expunge.methods.task import Task
from expunge.training.curvature import FISHERS, Vector, diagonal_fisher, fisher_passes, parameters_of, project

from .released_ff import released_moments
from .weight_edit import WeightEdit


@register_method(
    "FF",
    guarantee="empirical",
    citation="[Jia2023], section 3; Golatkar et al., CVPR 2020, sections 4 and 5",
    space={"alpha": (1e-8, 0.001, "log"), "exponent": [0.5, 1.0]},
)
@dataclasses.dataclass(frozen=True)
class FisherForgetting(WeightEdit):
    """Add Gaussian noise to every kept weight, with a variance that falls with its Fisher information on D_r.

    theta_u = theta_o + n, n_j ~ N(0, alpha * (F_j + damping)^(-exponent)), where F is the diagonal of the Fisher
    information of theta_o, averaged over D_r; each record has its own gradients. The exponent 0.5 is that of the papers
    (their noise has the factor F^(-1/4)), and follows from the quadratic approximation: among all covariances S it
    minimises tr(F S) / (2 alpha) + alpha tr(S^-1) / 2, the loss on D_r against the information about an isotropic
    shift. The code of both papers has the variance alpha / F, which is `exponent=1`.

    D_f is not read, and the mean does not move, so the method cannot raise the loss of D_f more than that of other
    records with the same gradients. Compare it with other methods as a baseline.

    With `legacy=True`, the noise is that of the released code of [Jia2023]: the squares are those of the gradient of
    the mean loss of 32 records; variances are clamped, averaged over the second dimension (also over pruned weights)
    and multiplied by 10 in the last layer and in vectors; and for the request of a class, the rows of the last layer
    that belong to it get the mean 0. The code also does that to the last class for a random 10 % of CIFAR-10, which is
    not repeated here. Its alpha is 2e-8 or 3e-8.

    Attributes:
        alpha: scale of the variance.
        exponent: of the Fisher information: 0.5, or 1 as in the code of the papers.
        damping: added to the Fisher information, which is 0 where a weight has no effect.
        fisher: labels of the gradients: `exact` (all K, weighted with the model's probabilities), `sampled` (one, drawn
            from them), or `empirical` (the record's label).
        records: number of records of D_r that the Fisher information is taken on; 0: all.
        legacy: the noise of the released code.
    """

    alpha: float = 1e-5
    exponent: float = 0.5
    damping: float = 1e-8
    fisher: str = "exact"
    records: int = 0
    legacy: bool = False
    idle_if_zero: ClassVar[tuple[str, ...]] = ("alpha",)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(
            "FF",
            alpha=(self.alpha, 0 <= self.alpha < math.inf),
            exponent=(self.exponent, 0 <= self.exponent < math.inf),
            damping=(self.damping, 0 < self.damping < math.inf),
            records=(self.records, self.records >= 0),
        )
        if self.fisher not in FISHERS:
            hint = unknown_name_hint(self.fisher, FISHERS)
            raise MethodError(f"unknown Fisher {self.fisher!r}", where="FF.fisher", hint=hint)

    @classmethod
    def unused_options(cls, options: Mapping[str, Any]) -> dict[str, str]:
        """See `WeightEdit.unused_options`."""
        unused = ("exponent", "damping", "fisher", "records")
        return dict.fromkeys(unused, "legacy=True") if options.get("legacy", cls.legacy) is True else {}

    def estimate_reads(self, trained: Trained, sizes: Sizes) -> Reads | None:
        """See `Method.estimate_reads`."""
        sample = min(self.records or sizes.retain, sizes.retain)
        found = Reads(retain=fisher_passes(self.fisher, sizes.classes) * sample)
        if self.legacy:
            found = Reads(retain=sizes.classes * sizes.retain)
        return found + self.re_estimation_reads(trained, sizes)

    def unlearn(self, task: Task) -> None:
        """See `Method.unlearn`.

        Raises:
            TrainingError: the Fisher information or a weight after the noise is not finite.
        """
        self.check_task(task)
        generator = torch_generator(task.seed, "noise")
        means: Vector = {}
        if self.legacy:
            means, variances = released_moments(task, self.alpha)
        else:
            variances = self.compute_variances(task)
        change: Vector = {}
        for name, parameter in parameters_of(task.model).items():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter.device, parameter.dtype)
            change[name] = noise * variances[name].sqrt()
            if name in means:
                change[name] += means[name] - parameter.detach()
        self.finish(task, project(change, task.mask))
        task.line += f" by noise of scale alpha = {self.alpha:g}"

    def compute_variances(self, task: Task) -> Vector:
        """Return the variance of each weight's noise; the records that are read are counted."""
        classes = task.context.records.classes
        batches = self.read_counted(task, self.sample(task, self.records), fisher_passes(self.fisher, classes))
        fisher = diagonal_fisher(task.model, batches, kind=self.fisher, mask=task.mask, seed=task.seed)
        return {name: self.alpha * (entries + self.damping).pow(-self.exponent) for name, entries in fisher.items()}
