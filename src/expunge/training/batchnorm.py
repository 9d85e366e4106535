"""BatchNorm layers hold means and variances of the records they saw: state that remembers, treated on purpose."""

from __future__ import annotations

import time
from collections.abc import Iterable

import torch
from torch import nn

from expunge.core.errors import ConfigError, TrainingError, unknown_name_hint
from expunge.core.seeds import global_rng

from .runtime import Runtime

#: What a method does with the BatchNorm buffers.
MODES: dict[str, str] = {
    "train": "they follow the batches of the method, as in the papers",
    "frozen": "they keep the original's values, and normalise with them while the method trains",
    "re-estimate": "they follow the batches, then are computed anew from one pass over D_r",
}

#: Least number of records in a batch when buffers are re-estimated: statistics of a few records are poor ones.
ESTIMATION_BATCH = 256

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
    """Compute every running mean and variance anew as the average over the given batches.

    Each layer forgets its buffers first (`reset_running_stats`), then averages the batches' means m_b and unbiased
    variances v_b by their number of records n_b: sum(n_b m_b) / sum(n_b), and likewise for v_b. A batch of one record
    has no variance and is left out. The buffers then depend on these records and on the weights alone.

    Returns:
        The number of records that went forward; 0, and nothing done, where the model has no such layer.

    Raises:
        TrainingError: no batch has two records; the buffers are left reset.
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
            layer.train()
        with global_rng(0, "re-estimate"), runtime.autocast():
            for x, _ in batches:
                if len(x) > 1:
                    count += len(x)
                    for layer in found:
                        layer.momentum = len(x) / count  # type: ignore[assignment]
                    model(x)
    finally:
        for layer, momentum in zip(found, momenta, strict=True):
            layer.momentum = momentum
        for module, training in flags:
            module.training = training
    if count == 0:
        raise TrainingError("BatchNorm statistics cannot be estimated anew: no batch has two records")
    return count
