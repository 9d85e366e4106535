"""l1-sparse unlearning: fine-tuning with an l1 penalty that fades."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import nn

from expunge.core.errors import MethodError, unknown_name_hint
from expunge.core.mask import Mask, MaskProvenance
from expunge.core.outcome import Outcome
from expunge.core.request import ForgetRequest
from expunge.core.trained import Trained
from expunge.sparsity.channels.layers import LAYER_TYPES, prunable_weights
from expunge.sparsity.masks.consistency import record_sparsity

from .base import Context, register, require_range
from .finetuning import FineTuning, fine_tune

STEPS = ("subgradient", "proximal")


@register("l1-sparse", guarantee="empirical", source="paper A [Jia2023], l1-sparse MU; unlearn/FT_prune of its code")
@dataclasses.dataclass(frozen=True)
class L1Sparse(FineTuning):
    """Fine-tuning on D_r with gamma_t * ||theta||_1, gamma_t falling linearly to 0.

    gamma_t = gamma * (1 - t / (E - E0)) for epoch t < E - E0, then 0, where E is `epochs` and E0 `no_l1_epochs`
    (E = E0: constant gamma).

    `step="subgradient"` is the paper's: the norm runs over all parameters (convolutions, linear layers, BatchNorm,
    biases) and its sub-gradient joins the SGD step; no weight becomes exactly 0. `step="proximal"` soft-thresholds the
    convolution and linear weights after each step, w <- sign(w) max(|w| - rate * gamma_t, 0), which leaves exact zeros;
    the zeros that remain become the unlearned model's mask. Where the model was sparse before, its mask is only thinned
    further, and still remembers.

    Attributes:
        gamma: weight of the penalty in the first epoch.
        no_l1_epochs: E0, epochs at the end without a penalty.
        step: `subgradient` or `proximal`.
    """

    gamma: float = 1e-4
    no_l1_epochs: int = 0
    step: str = "subgradient"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(
            "l1-sparse",
            gamma=(self.gamma, 0 <= self.gamma < math.inf),
            no_l1_epochs=(self.no_l1_epochs, 0 <= self.no_l1_epochs <= self.epochs),
        )
        if self.step not in STEPS:
            raise MethodError(f"unknown step {self.step!r}", where="step", hint=unknown_name_hint(self.step, STEPS))

    def gamma_at(self, epoch: int) -> float:
        """gamma_t of an epoch counted from 0."""
        span = self.epochs - self.no_l1_epochs
        if span == 0:
            return self.gamma
        return self.gamma * (1 - epoch / span) if epoch < span else 0.0

    def _penalty(self, model: nn.Module, epoch: int) -> torch.Tensor | None:
        gamma = self.gamma_at(epoch)
        return None if gamma == 0 else gamma * torch.stack([p.abs().sum() for p in model.parameters()]).sum()

    @torch.no_grad()
    def _shrink(self, model: nn.Module, epoch: int, rate: float) -> None:
        threshold = rate * self.gamma_at(epoch)
        if threshold > 0:
            for weight in _weights(model).values():
                # masked_fill_ assigns +0.0; a product with sign(w) would leave -0.0
                small = weight.abs() <= threshold
                weight.sub_(weight.sign() * threshold).masked_fill_(small, 0.0)

    def forget(self, trained: Trained, request: ForgetRequest, context: Context) -> Outcome:
        """See `Method.forget`."""
        if self.step == "subgradient":
            return fine_tune(self, self, trained, request, context, on="retain", penalty=self._penalty)
        outcome = fine_tune(self, self, trained, request, context, on="retain", after_step=self._shrink)
        if self.epochs == 0 or self.learning_rate == 0 or len(request.record_ids) == 0:
            return outcome
        return self._with_mask(outcome)

    def _with_mask(self, outcome: Outcome) -> Outcome:
        model, before = outcome.trained.model, outcome.trained.mask
        alive = {name: (weight.detach() != 0) for name, weight in _weights(model).items()}
        if before is not None:  # the same tensors, thinned; channels and patterns stay whole
            if before.provenance.granularity != "weight":
                return outcome
            thinner = {name: living & alive.get(name, living) for name, living in before.alive.items()}
            details = {key: value for key, value in before.provenance.details.items() if key != "sparsity"}
            details["thinned"] = {"by": "l1-sparse", "gamma": self.gamma}
            provenance = dataclasses.replace(before.provenance, scores_hash=None, details=details)
            mask = record_sparsity(Mask(thinner, provenance), model, ())
            mask.apply_(model)
            return dataclasses.replace(outcome, trained=dataclasses.replace(outcome.trained, mask=mask))
        mask = Mask(
            alive,
            MaskProvenance(
                criterion="l1-proximal",
                layers=tuple(kind for kind in LAYER_TYPES if _has(model, kind)),
                schedule="l1-sparse",
                details={"gamma": self.gamma, "records": outcome.trained.split.hash},
            ),
        )
        mask.apply_(model)
        # (weights of a sparse model that were masked before stay masked, so its mask still remembers what shaped it)
        rewrote = (*outcome.rewrote, "mask")
        return dataclasses.replace(outcome, trained=dataclasses.replace(outcome.trained, mask=mask), rewrote=rewrote)


def _has(model: nn.Module, kind: str) -> bool:
    return any(isinstance(module, LAYER_TYPES[kind]) for module in model.modules())


def _weights(model: nn.Module) -> dict[str, nn.Parameter]:
    kinds = [kind for kind in LAYER_TYPES if _has(model, kind)]
    return prunable_weights(model, kinds) if kinds else {}
