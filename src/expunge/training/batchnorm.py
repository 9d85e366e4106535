"""BatchNorm layers hold means and variances of the records they saw: state that remembers, treated on purpose."""

from __future__ import annotations

import time
from collections.abc import Iterable

import torch
from torch import nn

from expunge.core.errors import ConfigError, unknown_name_hint

from .runtime import Runtime

#: What a method does with the BatchNorm buffers.
MODES: dict[str, str] = {
    "train": "they follow the batches of the method, as in the papers",
    "frozen": "they keep the original's values, and normalise with them while the method trains",
    "re-estimate": "they follow the batches, then are computed anew from one pass over D_r",
}

_BatchNorm = nn.modules.batchnorm._BatchNorm


def check_mode(mode: str) -> str:
    """Return `mode`, or raise ConfigError with the nearest known one."""
    if mode not in MODES:
        raise ConfigError(f"unknown BatchNorm mode {mode!r}", where="batch_norm", hint=unknown_name_hint(mode, MODES))
    return mode


def layers(model: nn.Module) -> list[nn.Module]:
    """The BatchNorm layers that track statistics."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


def set_training(model: nn.Module, *, frozen: bool) -> None:
    """Training mode for the model, evaluation mode for its BatchNorm layers if `frozen`."""
    model.train()
    if frozen:
        for layer in layers(model):
            layer.eval()


def timed_re_estimate(
    model: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], runtime: Runtime
) -> tuple[int, float]:
    """`re_estimate`, with the seconds it took: (records that went forward, seconds)."""
    begun = time.perf_counter()
    count = re_estimate(model, batches, runtime)
    runtime.synchronise()
    return count, time.perf_counter() - begun


@torch.no_grad()
def re_estimate(model: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], runtime: Runtime) -> int:
    """Compute every running mean and variance anew as the plain average over the given batches.

    Each layer forgets its buffers first (`reset_running_stats`), then averages the batch statistics with equal weights
    (momentum None). The buffers then depend on these records and on the weights alone.

    Returns:
        The number of records that went forward; 0, and nothing done, where the model has no such layer.
    """
    found = layers(model)
    if not found:
        return 0
    flags = [(module, module.training) for module in model.modules()]
    momenta = [layer.momentum for layer in found]
    model.eval()
    count = 0
    try:
        for layer in found:
            layer.reset_running_stats()  # type: ignore[operator]
            layer.momentum = None  # type: ignore[assignment]
            layer.train()
        with runtime.autocast():
            for x, _ in batches:
                if len(x) > 1:
                    model(x)
                    count += len(x)
    finally:
        for layer, momentum in zip(found, momenta, strict=True):
            layer.momentum = momentum
        for module, training in flags:
            module.training = training
    return count
