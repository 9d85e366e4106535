"""Predictions in evaluation mode."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from expunge.core.errors import ModelError
from expunge.core.seeds import global_rng
from expunge.data.batches import Batches
from expunge.data.records import Records

from .runtime import Runtime


def predict_logits(
    model: nn.Module,
    records: Records,
    rows: NDArray[np.int64],
    *,
    runtime: Runtime | None = None,
    batch_size: int = 1024,
) -> torch.Tensor:
    """Logits of the records at `rows`, in that order: `N x K` float32 on the CPU. No augmentation, evaluation mode.

    A model that draws random numbers even in evaluation mode draws the same ones at every call.
    The model is put back into the mode it came in; it stays where it is if it is already on the device.

    Raises:
        ModelError: the model does not return `B x K` finite logits.
    """
    runtime = runtime or Runtime()
    rows = np.asarray(rows, dtype=np.int64)
    if len(rows) == 0:
        return torch.empty(0, records.classes)
    batches = Batches(
        records, rows, batch_size=batch_size, device=runtime.torch_device, channels_last=runtime.channels_last
    )
    home = next((p.device for p in model.parameters()), torch.device("cpu"))
    model.to(runtime.torch_device)
    try:
        with runtime.inference(model), global_rng(0, "predictions"):
            logits = torch.cat([model(x).float().to("cpu") for x, _ in batches.in_order()])
    finally:
        model.to(home)
    if logits.dim() != 2 or logits.shape[1] != records.classes:
        raise ModelError(
            f"the model returns {tuple(logits.shape[1:])} numbers a record for {records.classes} classes",
            hint="build the model with as many outputs as the records have classes",
        )
    if not torch.isfinite(logits).all():
        raise ModelError("the model returns NaN or infinite logits", hint="its weights are damaged or diverged")
    return logits.clone()


def accuracy(model: nn.Module, records: Records, rows: NDArray[np.int64], *, runtime: Runtime | None = None) -> float:
    """Accuracy in percent on the records at `rows`; 100 * mean(argmax logits = label). NaN for no records."""
    if len(rows) == 0:
        return float("nan")
    predicted = predict_logits(model, records, rows, runtime=runtime).argmax(1).numpy()
    return 100.0 * float((predicted == records.labels[rows]).mean())


def validator(
    records: Records, rows: NDArray[np.int64], runtime: Runtime
) -> Callable[[nn.Module], tuple[float, int]] | None:
    """What `fit` wants for selecting the best epoch, or None where there are no validation records."""
    if len(rows) == 0:
        return None
    return lambda model: (accuracy(model, records, rows, runtime=runtime), len(rows))
