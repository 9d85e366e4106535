"""l1-sparse: fine-tuning on the retain set with a decaying l1 penalty."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import nn

from expunge.core.errors import MethodError, unknown_name_hint
from expunge.core.mask import Mask, MaskProvenance
from expunge.sparsity.channels.layers import LAYER_TYPES, prunable_weights
from expunge.sparsity.masks.consistency import record_sparsity
from expunge.sparsity.masks.recorded import recorded_granularity

from .finetuning import FineTuning
from .options import require_range
from .registry import register_method
from .task import Task

STEPS = ("subgradient", "proximal")


@register_method(
    "l1-sparse",
    guarantee="empirical",
    citation="[Jia2023], l1-sparse MU; unlearn/FT_prune of its code",
    space={"epochs": [1, 2, 3, 5, 10], "learning_rate": (0.001, 0.1, "log"), "gamma": (1e-5, 0.01, "log")},
)
@dataclasses.dataclass(frozen=True)
class L1Sparse(FineTuning):
    """Fine-tune on D_r with the penalty gamma_t * ||theta||_1, where gamma_t decays linearly to 0.

    gamma_t = gamma * (1 - t / (E - E0)) for epochs t < E - E0, then 0; E is `epochs` and E0 is `no_l1_epochs`. For
    E = E0, gamma is constant.

    With `step="subgradient"`, as in the paper, the norm covers all parameters (convolutions, linear layers, BatchNorm,
    biases), and its subgradient is part of the SGD step; no weight becomes exactly 0. With `step="proximal"`, the
    convolution and linear weights are soft-thresholded after each step, w <- sign(w) max(|w| - rate * gamma_t, 0), so
    that some become exactly 0. The zeros at the end are the mask of the unlearned model. If the original was sparse,
    its mask only loses further weights; it is otherwise unchanged since training on D_f.

    Attributes:
        gamma: weight of the penalty in the first epoch.
        no_l1_epochs: E0, number of epochs at the end without penalty.
        step: `subgradient` or `proximal`.
        label_smoothing: of the cross-entropy; see `FT`.
    """

    gamma: float = 1e-4
    no_l1_epochs: int = 0
    step: str = "subgradient"
    label_smoothing: float = 0.0

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
        """Return gamma_t of an epoch, counted from 0."""
        span = self.epochs - self.no_l1_epochs
        if span == 0:
            return self.gamma
        return self.gamma * (1 - epoch / span) if epoch < span else 0.0

    def _penalty(self, model: nn.Module, epoch: int) -> torch.Tensor | None:
        gamma = self.gamma_at(epoch)
        return None if gamma == 0 else gamma * torch.stack([p.abs().sum() for p in model.parameters()]).sum()

    @torch.no_grad()
    def _soft_threshold(self, model: nn.Module, epoch: int, rate: float) -> None:
        threshold = rate * self.gamma_at(epoch)
        if threshold > 0:
            for weight in _find_weights(model).values():
                # masked_fill_ assigns +0.0; a product with sign(w) would leave -0.0
                is_small = weight.abs() <= threshold
                weight.sub_(weight.sign() * threshold).masked_fill_(is_small, 0.0)

    def unlearn(self, task: Task) -> None:
        """See `Method.unlearn`."""
        if self.step == "subgradient":
            self.fine_tune(task, on="retain", penalty=self._penalty)
            return
        self.fine_tune(task, on="retain", after_step=self._soft_threshold)
        if self.epochs > 0 and self.learning_rate > 0:
            task.mask = self._make_mask(task)

    def _make_mask(self, task: Task) -> Mask:
        """The mask of the nonzero weights; with an old mask, the same tensors with fewer kept weights."""
        model, old_mask = task.model, task.mask
        nonzero = {name: (weight.detach() != 0).cpu() for name, weight in _find_weights(model).items()}
        if old_mask is None:
            provenance = MaskProvenance(
                criterion="l1-proximal",
                layers=tuple(layer_type for layer_type in LAYER_TYPES if _has_layer(model, layer_type)),
                schedule="l1-sparse",
                details={"gamma": self.gamma, "records": task.split.hash},
            )
            return Mask(nonzero, provenance)
        if recorded_granularity(old_mask.provenance).structured:  # whole channels and patterns do not change
            return old_mask
        thinned = {name: kept & nonzero.get(name, kept) for name, kept in old_mask.kept.items()}
        details = {key: value for key, value in old_mask.provenance.details.items() if key != "sparsity"}
        details["thinned"] = {"method": "l1-sparse", "gamma": self.gamma}
        provenance = dataclasses.replace(old_mask.provenance, scores_hash=None, details=details)
        return record_sparsity(Mask(thinned, provenance), model, ())


def _has_layer(model: nn.Module, layer_type: str) -> bool:
    return any(isinstance(module, LAYER_TYPES[layer_type]) for module in model.modules())


def _find_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The convolution and linear weights that are not frozen."""
    layer_types = [layer_type for layer_type in LAYER_TYPES if _has_layer(model, layer_type)]
    found = prunable_weights(model, layer_types) if layer_types else {}
    return {name: weight for name, weight in found.items() if weight.requires_grad}
