"""The weights that a method may move: a subset of layers or parameters, a saliency mask, or both.

The pruning mask is another mask: a pruned weight is +0.0, and a weight that may not move keeps its value.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from expunge.core.errors import MethodError, unknown_name_hint
from expunge.core.hashing import plain_name, plain_parameters
from expunge.core.seeds import derive, torch_generator
from expunge.methods.task import Task
from expunge.training import curvature
from expunge.training.batchnorm import find_running_modules
from expunge.training.masked import Restriction

#: What ranks the weights of a saliency mask.
SOURCES: dict[str, str] = {
    "gradient": "the absolute value of the gradient of the loss on D_f",
    "random": "a random mask of the same size, the control",
}


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The part of a network that may move.

    Attributes:
        parameters: plain names of parameters.
        modules: plain names of modules, whose running statistics may follow the batches too.
    """

    parameters: frozenset[str]
    modules: frozenset[str]


def find_chosen(model: nn.Module, only: Sequence[str]) -> Chosen:
    """Find the parameters and modules of a network that some names choose.

    Args:
        model: the network.
        only: names of parameters, or of modules: these choose everything in them.

    Raises:
        MethodError: a name is that of nothing in the network, or of a module without parameters.

    Example:
        >>> network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> sorted(find_chosen(network, ["2", "0.bias"]).parameters)
        ['0.bias', '2.bias', '2.weight']
    """
    names = list(plain_parameters(model))
    paths = [plain_name(path) for path, _ in model.named_modules() if path]
    found: set[str] = set()
    for name in only:
        chosen = [known for known in names if known == name or known.startswith(f"{name}.")]
        if not chosen:
            raise MethodError(
                f"no parameter or layer of the network is called {name!r}" if name not in paths
                else f"the layer {name!r} has no parameters",
                where="only",
                hint=unknown_name_hint(name, [*paths, *names]),
            )  # fmt: skip
        found |= set(chosen)
    inside = {path for path in paths if any(path == name or path.startswith(f"{name}.") for name in only)}
    return Chosen(frozenset(found), frozenset(inside))


def restrict(task: Task, chosen: Chosen | None, saliency: float, source: str) -> Restriction | None:
    """The restriction of one run; None if every weight may move.

    Args:
        task: the task of the method.
        chosen: the part of the network that may move; None: all of it.
        saliency: fraction of the weights of that part that may move.
        source: a key of `SOURCES`.

    Raises:
        MethodError: nothing could move.
    """
    if chosen is None and saliency >= 1:
        return None
    allowed = {name: _allow(task, name, parameter, chosen) for name, parameter in plain_parameters(task.model).items()}
    if saliency < 1:
        scores = _draw_scores(task, allowed) if source == "random" else _compute_scores(task, allowed)
        allowed = keep_largest(scores, allowed, saliency)
    if not any(bool(tensor.any()) for tensor in allowed.values()):
        raise MethodError(
            "no weight may move",
            where=task.name,
            hint="choose a larger saliency, or parameters that are neither frozen nor pruned",
        )
    held: set[str] = set()
    if chosen is not None:
        moving = {name.rpartition(".")[0] for name in chosen.parameters} | chosen.modules
        shape = task.context.records.input_shape
        running = {id(module) for module in find_running_modules(task.model, shape)}
        paths = {plain_name(path) for path, module in task.model.named_modules() if id(module) in running}
        held = paths - moving
    return Restriction(allowed, frozenset(held))


def _allow(task: Task, name: str, parameter: nn.Parameter, chosen: Chosen | None) -> torch.Tensor:
    """The entries of a parameter that may move at all: chosen, not frozen, not pruned."""
    movable = parameter.requires_grad and (chosen is None or name in chosen.parameters)
    allowed = torch.full(parameter.shape, bool(movable))
    if task.mask is not None and name in task.mask.kept:
        allowed &= task.mask.kept[name]
    return allowed


def _compute_scores(task: Task, allowed: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """|gradient of the mean cross-entropy on D_f|, in evaluation mode, with the true labels."""
    names = [name for name, tensor in allowed.items() if tensor.any()]
    gradient = curvature.gradient(task.model, task.read(task.forget_rows), names=names)
    return {name: tensor.abs().cpu() for name, tensor in gradient.items()}


def _draw_scores(task: Task, allowed: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    generator = torch_generator(derive(task.seed, "saliency"), "random")
    return {name: torch.rand(tensor.shape, generator=generator) for name, tensor in allowed.items()}


def keep_largest(
    scores: Mapping[str, torch.Tensor], allowed: Mapping[str, torch.Tensor], fraction: float
) -> dict[str, torch.Tensor]:
    """The allowed entries with the largest scores, over all tensors together: `round(fraction * number allowed)`.

    Of equal scores, the first is kept.

    Args:
        scores: one for each entry; tensors in which nothing is allowed may be missing.
        allowed: bool tensors.
        fraction: in [0, 1].

    Example:
        >>> scores = {"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([2.0, 9.0])}
        >>> allowed = {"a": torch.tensor([True, True]), "b": torch.tensor([True, False])}
        >>> keep_largest(scores, allowed, 0.67)
        {'a': tensor([ True, False]), 'b': tensor([ True, False])}
    """
    names = [name for name, tensor in allowed.items() if tensor.any()]
    if not names:
        return dict(allowed)
    flat = torch.cat([scores[name][allowed[name]].reshape(-1) for name in names])
    kept = torch.zeros(len(flat), dtype=torch.bool)
    kept[torch.argsort(flat, descending=True, stable=True)[: round(fraction * len(flat))]] = True
    parts = kept.split([int(allowed[name].sum()) for name in names])
    found = {name: torch.zeros_like(tensor) for name, tensor in allowed.items()}
    for name, part in zip(names, parts, strict=True):
        found[name][allowed[name]] = part
    return found


def check_names(names: object) -> None:
    """Raise MethodError unless the option `only` is a list of strings."""
    if not isinstance(names, Iterable) or isinstance(names, str) or not all(isinstance(n, str) and n for n in names):
        raise MethodError(f"only is a list of names, not {names!r}", where="only")
