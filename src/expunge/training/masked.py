"""Masked optimiser steps: a masked weight is +0.0 after every step, and a held one keeps its value, with any optimiser.

A pruning mask and the restriction of a method are two masks: a pruned weight is +0.0, a held weight keeps its value.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping

import torch
from torch import nn

from expunge.core.hashing import plain_name
from expunge.core.mask import Mask
from expunge.core.show import repr_fields


class MaskKeeper:
    """Keeps the masked weights of a model at +0.0 around optimiser steps.

    `before_step` sets the gradients of masked weights to 0, so that they do not enter momentum and second moments.
    `after_step` sets the weights to +0.0, which undoes changes by weight decay, noise or old moments. Both assign
    (`masked_fill_`). A product with the mask would turn infinities into NaN, and could leave -0.0.

    Args:
        model: the model to train, already on its device. Its masked weights are set to +0.0 at once.
        mask: its mask, or None: then both methods do nothing.

    Raises:
        MaskError: the mask does not fit the model.

    >>> import torch
    >>> from expunge.core.mask import Mask, MaskProvenance
    >>> from expunge.training import MaskKeeper
    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> mask = Mask({"weight": torch.tensor([[True, False]])}, MaskProvenance("example"))
    >>> keeper = MaskKeeper(layer, mask)
    >>> optimiser = torch.optim.SGD(layer.parameters(), lr=0.1)
    >>> layer(torch.ones(3, 2)).sum().backward()
    >>> keeper.before_step()
    >>> layer.weight.grad
    tensor([[3., 0.]])
    >>> optimiser.step()
    >>> keeper.after_step()
    >>> layer.weight[0, 1].item()
    0.0
    """

    def __init__(self, model: nn.Module, mask: Mask | None) -> None:
        self.pairs: list[tuple[nn.Parameter, torch.Tensor]] = []
        if mask is None:
            return
        mask.check_fits(model)
        parameters = {plain_name(name): p for name, p in model.named_parameters()}
        for name, kept in mask.kept.items():
            parameter = parameters[name]
            pruned = ~kept.to(parameter.device)
            if parameter.dim() == 4 and parameter.is_contiguous(memory_format=torch.channels_last):
                pruned = pruned.contiguous(memory_format=torch.channels_last)
            self.pairs.append((parameter, pruned))
        self.after_step()

    def before_step(self) -> None:
        """Set the gradients of masked weights to 0."""
        for parameter, pruned in self.pairs:
            if parameter.grad is not None:
                parameter.grad.masked_fill_(pruned, 0.0)

    @torch.no_grad()
    def clear_moments(self, optimiser: torch.optim.Optimizer) -> None:
        """Set the momentum and the second moments of masked weights to 0: those of weights that were just pruned."""
        for parameter, pruned in self.pairs:
            for moment in optimiser.state.get(parameter, {}).values():
                if isinstance(moment, torch.Tensor) and moment.shape == pruned.shape and moment.ndim:
                    moment.masked_fill_(pruned, 0.0)

    @torch.no_grad()
    def after_step(self) -> None:
        """Set masked weights to +0.0."""
        for parameter, pruned in self.pairs:
            parameter.masked_fill_(pruned, 0.0)


@dataclasses.dataclass(frozen=True, eq=False)
class Restriction:
    """The weights that a training run may move.

    Attributes:
        movable: plain name of a parameter to a bool tensor of its shape, True where a weight may move. A parameter that
            is not named may move.
        held_modules: plain names of modules whose running statistics keep their values: they run in evaluation mode.
    """

    movable: Mapping[str, torch.Tensor]
    held_modules: frozenset[str] = frozenset()

    __repr__ = repr_fields

    @property
    def count(self) -> int:
        """Number of weights that may move, among those named."""
        return sum(int(tensor.sum()) for tensor in self.movable.values())


class ValueKeeper:
    """Keeps the values of the weights that may not move, whatever momentum, weight decay and hooks do.

    A parameter of which nothing may move has `requires_grad` off within `hold`, so that the backward pass skips it. Of
    the others, `before_step` sets the gradients of held weights to 0, and `after_step` restores their values.

    Args:
        model: the model to train, already on its device and masked.
        restriction: the weights that may move; None: all, and every method does nothing.
    """

    def __init__(self, model: nn.Module, restriction: Restriction | None) -> None:
        self.whole: list[nn.Parameter] = []
        self.parts: list[tuple[nn.Parameter, torch.Tensor, torch.Tensor]] = []
        self.modules: list[nn.Module] = []
        if restriction is None:
            return
        for name, parameter in model.named_parameters():
            movable = restriction.movable.get(plain_name(name))
            if movable is None or bool(movable.all()):
                continue
            if not movable.any():
                self.whole.append(parameter)
                continue
            held = ~movable.to(parameter.device)
            self.parts.append((parameter, held, parameter.detach().clone()))
        self.modules = [m for path, m in model.named_modules() if plain_name(path) in restriction.held_modules]

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Switch off the gradients of parameters of which nothing may move, within the block."""
        flags = [(parameter, parameter.requires_grad) for parameter in self.whole]
        try:
            for parameter in self.whole:
                parameter.requires_grad_(False)
                parameter.grad = None
            yield
        finally:
            for parameter, requires_grad in flags:
                parameter.requires_grad_(requires_grad)

    def set_mode(self) -> None:
        """Put the held modules in evaluation mode."""
        for module in self.modules:
            module.training = False

    def before_step(self) -> None:
        """Set the gradients of held weights to 0, so that they do not enter momentum and second moments."""
        for parameter, held, _ in self.parts:
            if parameter.grad is not None:
                parameter.grad.masked_fill_(held, 0.0)

    @torch.no_grad()
    def after_step(self) -> None:
        """Restore the values of held weights."""
        for parameter, held, values in self.parts:
            parameter.copy_(torch.where(held, values, parameter))
