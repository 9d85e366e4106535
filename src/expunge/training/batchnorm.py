"""BatchNorm buffers (running means and variances), and how methods treat them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable

import torch
from torch import nn

from expunge.core.errors import ConfigError, ModelError, TrainingError, unknown_name_hint
from expunge.core.seeds import global_rng
from expunge.core.trained import clone_model
from expunge.data.batches import Batches

from .runtime import Runtime

#: What a method does with the BatchNorm buffers.
MODES: dict[str, str] = {
    "train": "they follow the batches of the method, as in the papers",
    "frozen": "they keep the original's values, and normalise with them while the method trains",
    "re-estimate": "they follow the batches, then are recomputed from one pass over D_r",
}

#: Smallest batch for re-estimating buffers: statistics of a few records are noisy.
ESTIMATION_BATCH = 256

_BatchNorm = nn.modules.batchnorm._BatchNorm


def check_mode(mode: str) -> str:
    """Return `mode`, or raise ConfigError with the nearest known one."""
    if mode not in MODES:
        raise ConfigError(f"unknown BatchNorm mode {mode!r}", where="batch_norm", hint=unknown_name_hint(mode, MODES))
    return mode


def find_layers(model: nn.Module) -> list[nn.Module]:
    """The BatchNorm layers that track statistics."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


def set_training_mode(model: nn.Module, *, frozen: bool) -> None:
    """Put the model in training mode, and its BatchNorm layers in evaluation mode if `frozen`."""
    model.train()
    if frozen:
        for layer in find_layers(model):
            layer.eval()


def join_single_records(model: nn.Module, batches: Batches) -> Batches:
    """Return the batches, with a last batch of one record joined to the one before it if the model cannot use it.

    A BatchNorm layer without running statistics normalises with those of the batch, which one record may not have. The
    batches change only if such a layer fails on one record.

    Args:
        model: the model; it is not modified.
        batches: the batches that it is to be run on.

    Raises:
        ModelError: there is only one record, or a batch size of one.
    """
    single = batches.batch_size == 1 or batches.count % batches.batch_size == 1
    untracked = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is None]
    if not (single and untracked and batches.count):
        return batches
    x, _ = next(iter(dataclasses.replace(batches, rows=batches.rows[:1], least=1).in_order()))
    tried = clone_model(model).to(x.device)
    set_training_mode(tried, frozen=True)
    try:
        with torch.no_grad(), global_rng(0, "one record"):
            tried(x)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        if batches.count == 1 or batches.batch_size == 1:
            raise ModelError(
                "a batch of one record has no statistics for its BatchNorm layers without running statistics",
                hint="use track_running_stats=True, GroupNorm, or batches (and sets) of two records or more",
            ) from error
        return dataclasses.replace(batches, least=2)
    return batches


def re_estimate_timed(
    model: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], runtime: Runtime
) -> tuple[int, float]:
    """Call `re_estimate`; return the number of records that went forward, and the seconds it took."""
    start_time = time.perf_counter()
    count = re_estimate(model, batches, runtime)
    runtime.synchronise()
    return count, time.perf_counter() - start_time


@torch.no_grad()
def re_estimate(model: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], runtime: Runtime) -> int:
    """Recompute every running mean and variance as the average over the given batches.

    The buffers of each layer are reset first (`reset_running_stats`). With m_b, v_b the mean and the unbiased variance
    of batch b and n_b its number of records, the mean becomes sum(n_b m_b) / sum(n_b), and the variance
    sum(n_b v_b) / sum(n_b). A batch of one record has no variance and is skipped. The buffers then depend only on
    these records and on the weights.

    Args:
        model: the model, on the runtime's device; its buffers change in place, its train/eval flags do not.
        batches: pairs of inputs `B x ...` and labels `B`; the labels are not read.
        runtime: precision of the forward passes.

    Returns:
        The number of records that went forward; 0 if the model has no BatchNorm layer (then nothing is done).

    Raises:
        TrainingError: no batch has two records; the buffers are left reset.
    """
    found = find_layers(model)
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
        raise TrainingError("BatchNorm statistics cannot be re-estimated: no batch has two records")
    return count
