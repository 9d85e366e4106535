"""BatchNorm buffers (running means and variances), and how methods treat them.

The buffers of InstanceNorm, and every other tensor that forward passes in training change
(`expunge.core.find_running_tensors`), are treated in the same way, except that only those of torch's normalisation
layers can be re-estimated.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from expunge.core.errors import ConfigError, ModelError, TrainingError, unknown_name_hint
from expunge.core.hashing import plain_name
from expunge.core.probe import run_on_random_records
from expunge.core.seeds import global_rng
from expunge.core.trained import clone_model, compare_states, find_running_tensors
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

_NormBase = nn.modules.batchnorm._NormBase


def check_mode(mode: str) -> str:
    """Return `mode`, or raise ConfigError with the nearest known one."""
    if mode not in MODES:
        raise ConfigError(f"unknown BatchNorm mode {mode!r}", where="batch_norm", hint=unknown_name_hint(mode, MODES))
    return mode


def find_layers(model: nn.Module) -> list[_NormBase]:
    """The normalisation layers of torch (BatchNorm and InstanceNorm) that have running statistics."""
    norms = (m for m in model.modules() if isinstance(m, _NormBase))
    return [layer for layer in norms if layer.track_running_stats and layer.running_mean is not None]


def find_running_modules(model: nn.Module, input_shape: Sequence[int]) -> list[nn.Module]:
    """The modules that own a tensor which a forward pass in training mode changes, `find_layers` included."""
    names = {name.rpartition(".")[0] for name in find_running_tensors(model, input_shape)}
    return [module for path, module in model.named_modules() if plain_name(path) in names or (not path and "" in names)]


def set_training_mode(model: nn.Module, *, frozen: bool, input_shape: Sequence[int]) -> None:
    """Put the model in training mode; if `frozen`, the modules with running statistics in evaluation mode.

    The children of such a module stay in training mode, unless they have running statistics too.

    Args:
        model: the model.
        frozen: whether running statistics must not change.
        input_shape: shape of one record, to find running statistics of custom layers.
    """
    model.train()
    if frozen:
        for module in {*find_layers(model), *find_running_modules(model, input_shape)}:
            module.training = False


def check_can_freeze(model: nn.Module, input_shape: Sequence[int]) -> None:
    """Raise TrainingError if a tensor changes in forward passes although its module is in evaluation mode."""
    copied = clone_model(model)
    set_training_mode(copied, frozen=True, input_shape=input_shape)
    try:
        run_on_random_records(copied, input_shape)
    except Exception:  # training reports what is wrong with the network
        return
    moved = [change.name for change in compare_states(model, copied) if change.changed]
    if moved:
        raise TrainingError(
            "the tensor changes in every forward pass, also in evaluation mode, so it cannot be frozen",
            where=moved[0],
            hint="change it only `if self.training`, or use batch_norm=train",
        )


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
    norms = (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    untracked = any(layer.running_mean is None for layer in norms)
    if not (single and untracked and batches.count):
        return batches
    x, _ = next(iter(dataclasses.replace(batches, rows=batches.rows[:1], least=1).in_order()))
    tried = clone_model(model).to(x.device)
    set_training_mode(tried, frozen=True, input_shape=batches.records.input_shape)
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
    """Recompute every running mean and variance of the layers of `find_layers` from the given batches.

    The buffers of each layer are reset first (`reset_running_stats`). With m_c, v_c the mean and the unbiased variance
    in call c of the layer and n_c the number of rows of its input, the mean becomes sum(n_c m_c) / sum(n_c), and the
    variance sum(n_c v_c) / sum(n_c). A layer that is called several times in a forward pass averages over all its
    calls. A batch of one record has no variance and is skipped. The buffers then depend only on these records and on
    the weights.

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
    rows = dict.fromkeys(found, 0)

    def weigh_call(layer: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        assert isinstance(layer, _NormBase)
        size = len(args[0] if args else keywords["input"])
        rows[layer] += size
        layer.momentum = size / rows[layer]

    handles = [layer.register_forward_pre_hook(weigh_call, with_kwargs=True) for layer in found]
    model.eval()
    count = 0
    try:
        for layer in found:
            layer.reset_running_stats()
            layer.train()
        with global_rng(0, "re-estimate"), runtime.autocast():
            for x, _ in batches:
                if len(x) > 1:
                    count += len(x)
                    for layer in found:  # for a forward that reads layer.momentum without calling the layer
                        layer.momentum = len(x) / count
                    model(x)
    finally:
        for handle in handles:
            handle.remove()
        for layer, momentum in zip(found, momenta, strict=True):
            layer.momentum = momentum
        for module, training in flags:
            module.training = training
    if count == 0:
        raise TrainingError("BatchNorm statistics cannot be re-estimated: no batch has two records")
    return count
