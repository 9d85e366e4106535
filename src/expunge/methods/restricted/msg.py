"""MSG: the second place of the NeurIPS 2023 challenge (weights with the smallest gradients are initialised again)."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
from torch import nn

from expunge.core.errors import ConfigError, MethodError
from expunge.core.mask import Mask
from expunge.core.request import ForgetRequest
from expunge.core.seeds import torch_generator
from expunge.core.trained import Trained
from expunge.data.records import Records
from expunge.methods.composition.restriction import keep_largest
from expunge.methods.composition.two_sets import sample_rows
from expunge.methods.finetuning import FineTuning
from expunge.methods.options import require_range
from expunge.methods.reads import Reads, Sizes
from expunge.methods.registry import register_method
from expunge.methods.task import Task
from expunge.sparsity.channels.layers import LAYER_TYPES, check_layer_types, prunable_weights
from expunge.training import curvature
from expunge.training.epochs.steps import Pass, Steps


@register_method(
    "MSG",
    guarantee="empirical",
    citation="second place of the NeurIPS 2023 challenge [Triantafillou2024]; port of Deep Unlearn [Cadet2024]",
    space={
        "epochs": [1, 2, 3, 5],
        "learning_rate": (1e-4, 0.1, "log"),
        "fraction": [0.1, 0.3, 0.5],
        "slow": [0.01, 0.1, 1.0],
    },
)
@dataclasses.dataclass(frozen=True)
class Msg(FineTuning):
    """Initialise again the convolution weights whose gradients of the two losses differ least, then fine-tune on D_r,
    with the gradients of the other convolution weights scaled down.

    With g = grad CE(sample of D_r of the size of D_f) - grad CE(D_f), in evaluation mode, the fraction `fraction` of
    the kept weights of each convolution with the smallest |g| is drawn from N(0, 2 / fan-out) (Kaiming, fan-out). Then
    mean_{D_r} CE is minimised; the gradients of all other convolution weights are multiplied by `slow`. In epoch t = 1,
    2, ... of E, with a = (E + 1) // 2, the learning rate is rate * t / a up to t = a, then rate * (E + 1 - t) / (E + 1
    - a).

    Linear layers are neither initialised again nor slowed, so a network without convolutions is refused: MSG would be
    FT there. `layers` can name them too, which is ours. It needs D_f and D_r with labels. Cost: a pass over D_f, over
    as many records of D_r, then one over D_r in each epoch. Defaults are those of the entry. It erases by damage and
    repair with D_r: long repair approaches retraining.

    Attributes:
        fraction: of the kept weights of each layer that are initialised again.
        slow: factor of the gradients of the others.
        layers: `conv`, `linear` or both.
    """

    epochs: int = 5
    learning_rate: float = 1e-3
    batch_size: int = 64
    fraction: float = 0.3
    slow: float = 0.1
    layers: tuple[str, ...] = ("conv",)
    idle_if_zero: ClassVar[tuple[str, ...]] = ("epochs",)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("MSG", fraction=(self.fraction, 0 <= self.fraction <= 1), slow=(self.slow, 0 <= self.slow <= 1))
        try:
            check_layer_types(self.layers, "MSG.layers")
        except ConfigError as error:
            raise MethodError(error.what, where=error.where, hint=error.hint) from error

    def unsupported_reason(self, model: nn.Module, records: Records) -> tuple[str, str] | None:
        """See `Method.unsupported_reason`: it has no layer of the types."""
        types = tuple(layer_type for name in self.layers for layer_type in LAYER_TYPES[name])
        if any(isinstance(module, types) for module in model.modules()):
            return None
        return "the network has no convolution, and without one MSG is FT", "layers=[linear], or use FT"

    def check_request(self, model: nn.Module, mask: Mask | None, request: ForgetRequest, records: Records) -> None:
        """See `Method.check_request`.

        Raises:
            MethodError: the network has no layer of the types.
        """
        reason = self.unsupported_reason(model, records)
        if reason is not None:
            raise MethodError(reason[0], where="MSG", hint=reason[1])

    def estimate_reads(self, trained: Trained, sizes: Sizes) -> Reads | None:
        """See `Method.estimate_reads`."""
        found = super().estimate_reads(trained, sizes)
        if found is None or not self.epochs:
            return found
        return found + Reads(retain=min(sizes.forget, sizes.retain), forget=sizes.forget)

    def unlearn(self, task: Task) -> None:
        """See `Method.unlearn`."""
        if self.epochs == 0:
            self.run_passes(task, [])
            return
        weights = prunable_weights(task.model, self.layers)
        weights = {name: weight for name, weight in weights.items() if weight.requires_grad}
        restriction = self.restrict(task)
        chosen = self._choose(task, weights, {} if restriction is None else restriction.movable)
        _draw_values(task, weights, chosen)
        with self._slow_down(weights, chosen):
            passes = [self._make_pass(task, number) for number in range(1, self.epochs + 1)]
            self.run_passes(task, passes, Steps(restriction=restriction))

    def _choose(
        self, task: Task, weights: dict[str, nn.Parameter], movable: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """The weights to initialise again: in each layer, of those that are kept and may change, the smallest |g|."""
        names = list(weights)
        sample = sample_rows(task, task.retain_rows, len(task.forget_rows), "retain")
        retain = curvature.gradient(task.model, task.read(sample), names=names)
        forget = curvature.gradient(task.model, task.read(task.forget_rows), names=names)
        found: dict[str, torch.Tensor] = {}
        for name, weight in weights.items():
            kept = torch.ones(weight.shape, dtype=torch.bool)
            if task.mask is not None and name in task.mask.kept:
                kept = task.mask.kept[name]
            kept = kept & movable[name] if name in movable else kept
            score = -(retain[name] - forget[name]).abs().cpu()
            found |= keep_largest({name: score}, {name: kept}, self.fraction)
        return found

    @contextlib.contextmanager
    def _slow_down(self, weights: dict[str, nn.Parameter], chosen: dict[str, torch.Tensor]) -> Iterator[None]:
        """Scale the gradients of the weights that are not chosen, within the block."""
        handles = []
        for name, weight in weights.items():
            factor = torch.where(chosen[name], 1.0, self.slow).to(weight.device)
            handles.append(weight.register_hook(lambda gradient, factor=factor: gradient * factor))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _make_pass(self, task: Task, number: int) -> Pass:
        top = (self.epochs + 1) // 2
        share = number / top if number <= top else (self.epochs + 1 - number) / (self.epochs + 1 - top)
        return Pass(task.retain_rows, rate=lambda fraction: self.learning_rate * share)


@torch.no_grad()
def _draw_values(task: Task, weights: dict[str, nn.Parameter], chosen: dict[str, torch.Tensor]) -> None:
    """Draw the chosen weights from N(0, 2 / fan-out); fan-out is the number of outputs of a weight."""
    generator = torch_generator(task.seed, "initial")
    for name, weight in weights.items():
        fan_out = weight.shape[0] * math.prod(weight.shape[2:])
        drawn = torch.randn(weight.shape, generator=generator) * math.sqrt(2 / fan_out)
        weight.copy_(torch.where(chosen[name].to(weight.device), drawn.to(weight.device), weight))
