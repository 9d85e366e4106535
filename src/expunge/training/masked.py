"""Masked optimiser steps: a masked weight is +0.0 after every step, with any optimiser."""

from __future__ import annotations

import torch
from torch import nn

from expunge.core.hashing import plain_name
from expunge.core.mask import Mask


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
    def after_step(self) -> None:
        """Set masked weights to +0.0."""
        for parameter, pruned in self.pairs:
            parameter.masked_fill_(pruned, 0.0)
