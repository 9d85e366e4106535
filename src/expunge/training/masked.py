"""Mask-safe optimiser steps: a masked weight is +0.0 after every step, whatever the optimiser does."""

from __future__ import annotations

import torch
from torch import nn

from expunge.core.hashing import plain_name
from expunge.core.mask import Mask


class MaskKeeper:
    """Keeps the masked weights of one model at +0.0 around optimiser steps.

    `before_step` assigns 0 to the gradients of masked weights, so that momentum and second moments never learn of them;
    `after_step` assigns +0.0 to the weights, which undoes whatever decay, noise or a fused step did. Both assign
    (`masked_fill_`) and never multiply: infinities do not become NaN, and no -0.0 is left.

    Args:
        model: the model that is trained, already on its device.
        mask: its mask, or None: then both calls do nothing.
    """

    def __init__(self, model: nn.Module, mask: Mask | None) -> None:
        self.pairs: list[tuple[nn.Parameter, torch.Tensor]] = []
        if mask is None:
            return
        mask.check_fits(model)
        parameters = {plain_name(name): p for name, p in model.named_parameters()}
        for name, alive in mask.alive.items():
            parameter = parameters[name]
            dead = ~alive.to(parameter.device)
            if parameter.dim() == 4 and parameter.is_contiguous(memory_format=torch.channels_last):
                dead = dead.contiguous(memory_format=torch.channels_last)
            self.pairs.append((parameter, dead))
        self.after_step()

    def before_step(self) -> None:
        """Assign 0 to the gradients of masked weights."""
        for parameter, dead in self.pairs:
            if parameter.grad is not None:
                parameter.grad.masked_fill_(dead, 0.0)

    @torch.no_grad()
    def after_step(self) -> None:
        """Assign +0.0 to masked weights."""
        for parameter, dead in self.pairs:
            parameter.masked_fill_(dead, 0.0)
