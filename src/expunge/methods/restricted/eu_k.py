"""EU-k: the last k layers are initialised again and trained on the retain set."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import nn

from expunge.core.errors import MethodError
from expunge.core.hashing import plain_name, plain_parameters
from expunge.core.seeds import derive
from expunge.core.trained import Trained, plain_state
from expunge.methods.composition.restriction import Chosen
from expunge.methods.frozen import find_equal, is_constant
from expunge.methods.registry import register_method
from expunge.methods.start import check_buildable, strip_patches
from expunge.methods.task import Task
from expunge.models import Architecture
from expunge.training.masked import Restriction

from .last_layers import COUNTED, LastLayers


@register_method(
    "EU-k",
    guarantee="empirical",
    citation="[Goel2022], section 4; its code",
    space={"epochs": [2, 5, 10], "learning_rate": (0.001, 0.1, "log"), "layers": [1, 2]},
)
@dataclasses.dataclass(frozen=True)
class EUk(LastLayers):
    """Set the last k layers to new initial values, and train them on D_r; all others keep their values, running
    statistics too.

    The layers are those of CF-k. Their parameters and running statistics are set to those of the same network, built
    with a seed that is drawn from that of the method; a pruned weight stays 0. Then mean_{D_r} CE(f_theta(x), y) is
    minimised over them. With all layers, this is retraining. The frozen part still has all that it learned from D_f. It
    needs D_r with labels, and a network that can be built again. Cost: as CF-k.

    The code (`legacy`) resets convolutions and linear layers only, not BatchNorm. Number of epochs and learning rate
    are in the range of Fan et al. 2024 (ECCV): 10 epochs, 1e-4 to 0.1.

    Attributes:
        legacy: BatchNorm is not reset, and the running statistics of the frozen layers follow the batches.
    """

    legacy: bool = False
    idle_if_zero: ClassVar[tuple[str, ...]] = ("epochs",)

    def check_state(self, trained: Trained) -> None:
        """See `Method.check_state`.

        Raises:
            ModelError: the network cannot be built again.
        """
        super().check_state(trained)
        check_buildable(trained, self.name, "resetting its layers would not forget")

    def unlearn(self, task: Task) -> None:
        """See `Method.unlearn`.

        Raises:
            MethodError: the built network has the trained values.
        """
        restriction = self.restrict(task) if self.epochs else None
        if restriction is not None:
            reset_layers(task, super().find_movable(task), restriction, keep_others=self.legacy)
        self.fine_tune(task, on="retain", restriction=restriction)

    def find_movable(self, task: Task) -> Chosen:
        """See `FineTuning.find_movable`."""
        last = super().find_movable(task)
        every = frozenset(path for path, _ in task.model.named_modules())
        return Chosen(last.parameters, every) if self.legacy else last


@torch.no_grad()
def reset_layers(task: Task, chosen: Chosen, restriction: Restriction, *, keep_others: bool = False) -> None:
    """Set the chosen parameters, and the buffers of the chosen modules, to the values of a newly built network.

    Args:
        task: the task of a method; its model changes.
        chosen: the layers.
        restriction: the weights that may change.
        keep_others: reset convolutions and linear layers only.

    Raises:
        MethodError: the built network has the trained values, so resetting would not forget.
    """
    architecture = Architecture.from_json(strip_patches(task.trained).provenance.architecture)
    fresh = architecture.build(derive(task.seed, "initial"))
    old, new = plain_parameters(task.model), plain_parameters(fresh)
    drawn = [name for name in sorted(chosen.parameters) if not is_constant(new[name].detach())]
    if drawn and len(find_equal(drawn, new, old, task.mask)) == len(drawn):
        raise MethodError(
            "the network is built with the trained values, so resetting its layers would not forget",
            where=drawn[0],
            hint="build the network with initial values that do not depend on the records",
        )
    names = set(chosen.parameters)
    if keep_others:
        names = {name for name in names if _is_counted(task.model, name)}
    else:
        paths = {plain_name(path) for path, _ in task.model.named_modules()} & chosen.modules
        names |= {name for name in plain_state(task.model) if name.rpartition(".")[0] in paths and name not in old}
    target, source = plain_state(task.model), plain_state(fresh)
    for name in names:
        value = source[name].to(target[name].device)
        if name in restriction.movable:  # not a frozen, held or pruned weight
            value = torch.where(restriction.movable[name].to(value.device), value, target[name])
        target[name].copy_(value)


def _is_counted(model: nn.Module, name: str) -> bool:
    """Whether a parameter is that of a convolution or a linear layer."""
    path = name.rpartition(".")[0]
    return any(isinstance(module, COUNTED) for other, module in model.named_modules() if plain_name(other) == path)
