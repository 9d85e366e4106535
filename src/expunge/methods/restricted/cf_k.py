"""CF-k: fine-tuning of the last k layers on the retain set."""

from __future__ import annotations

import dataclasses

from expunge.methods.composition.restriction import Chosen
from expunge.methods.registry import register_method
from expunge.methods.task import Task

from .last_layers import LastLayers


@register_method(
    "CF-k",
    guarantee="empirical",
    citation="[Goel2022], section 4; its code",
    space={"epochs": [2, 5, 10], "learning_rate": (0.001, 0.1, "log"), "layers": [1, 2]},
)
@dataclasses.dataclass(frozen=True)
class CFk(LastLayers):
    """Fine-tune the last k layers on D_r; all others keep their values, running statistics too.

    It minimises mean_{D_r} CE(f_theta(x), y) over the parameters of the last k convolutions and linear layers, in the
    order in which a forward pass calls them; BatchNorm goes with the layer before it. The frozen part still has all
    that it learned from D_f. It needs D_r with labels. Cost: a pass over D_r in each epoch, with a backward pass
    through the last k layers only.

    In the code the running statistics of the frozen layers follow the batches (`legacy`).

    Attributes:
        legacy: the running statistics of the frozen layers follow the batches.
    """

    legacy: bool = False

    def unlearn(self, task: Task) -> None:
        """See `Method.unlearn`."""
        self.fine_tune(task, on="retain")

    def find_movable(self, task: Task) -> Chosen:
        """See `FineTuning.find_movable`."""
        last = super().find_movable(task)
        every = frozenset(path for path, _ in task.model.named_modules())
        return Chosen(last.parameters, every) if self.legacy else last
