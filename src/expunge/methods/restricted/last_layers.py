"""The last layers of a network, in the order in which a forward pass calls them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import nn

from expunge.core.errors import MethodError
from expunge.core.hashing import plain_name, plain_parameters
from expunge.core.probe import run_on_random_records
from expunge.core.trained import Trained, clone_model
from expunge.methods.composition.restriction import Chosen, find_chosen
from expunge.methods.finetuning import FineTuning
from expunge.methods.options import require_range
from expunge.methods.task import Task
from expunge.sparsity.channels.layers import LAYER_TYPES

#: The layers that count; others, such as BatchNorm, go with the one before them.
COUNTED = tuple(layer_type for types in LAYER_TYPES.values() for layer_type in types)


def list_calls(model: nn.Module, input_shape: Sequence[int]) -> list[tuple[str, nn.Module]]:
    """Plain paths and modules that own parameters or buffers, in the order of their first call in a forward pass."""
    copied = clone_model(model).cpu().eval()
    order: list[str] = []

    def note(path: str) -> None:
        if path not in order:
            order.append(path)

    for path, module in copied.named_modules():
        if module._parameters or module._buffers:
            module.register_forward_pre_hook(lambda module, inputs, path=path: note(path))
    run_on_random_records(copied, input_shape)
    modules = dict(model.named_modules())
    return [(plain_name(path) if path else "", modules[path]) for path in order]


def find_last_layers(model: nn.Module, layers: int, input_shape: Sequence[int]) -> Chosen:
    """Find the last layers of a network: each convolution or linear layer counts one.

    A module between two of them, such as BatchNorm, goes with the first. Parameters of a module that is never called
    itself go with the module around it.

    Args:
        model: the network; not modified.
        layers: how many.
        input_shape: shape of one record.

    Raises:
        MethodError: the network has fewer.

    Example:
        >>> network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2))
        >>> sorted(find_last_layers(network, 2, (3,)).modules)
        ['3', '4']
    """
    calls = list_calls(model, input_shape)
    starts = [number for number, (_, module) in enumerate(calls) if isinstance(module, COUNTED)]
    if len(starts) < layers:
        raise MethodError(
            f"the network has {len(starts)} convolutions and linear layers, fewer than {layers}",
            where="layers",
            hint=f"layers={len(starts)} trains all of them" if starts else "use FT, which trains the whole network",
        )
    last, called = {path for path, _ in calls[starts[-layers] :]}, {path for path, _ in calls}
    names = {name for name in plain_parameters(model) if _find_owner(name, called) in last}
    return Chosen(frozenset(names), frozenset(last))


def _find_owner(name: str, called: set[str]) -> str:
    """The called module that a parameter belongs to: the innermost around it."""
    path = name.rpartition(".")[0]
    while path and path not in called:
        path = path.rpartition(".")[0]
    return path


@dataclasses.dataclass(frozen=True)
class LastLayers(FineTuning):
    """Base class of CF-k and EU-k.

    Attributes:
        layers: k, the number of layers that change, counted from the last.
    """

    layers: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(type(self).__name__, layers=(self.layers, self.layers >= 1))

    def check_state(self, trained: Trained) -> None:
        """See `Method.check_state`.

        Raises:
            MethodError: the network has fewer layers, or `only` names nothing in it.
        """
        super().check_state(trained)
        find_last_layers(trained.model, self.layers, trained.provenance.architecture["input_shape"])

    def find_movable(self, task: Task) -> Chosen:
        """See `FineTuning.find_movable`: the last layers; those of them that `only` names, if it does."""
        last = find_last_layers(task.model, self.layers, task.context.records.input_shape)
        if not self.only:
            return last
        chosen = find_chosen(task.model, self.only)
        return Chosen(last.parameters & chosen.parameters, last.modules & chosen.modules)
