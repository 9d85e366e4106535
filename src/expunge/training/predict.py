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

from .batchnorm import join_single_records
from .runtime import Runtime


def predict_logits(
    model: nn.Module,
    records: Records,
    rows: NDArray[np.int64],
    *,
    runtime: Runtime | None = None,
    batch_size: int | None = None,
) -> torch.Tensor:
    """Compute the logits of records in evaluation mode, without augmentation.

    A model that draws random numbers in evaluation mode draws the same ones in every call. Afterwards the model is back
    on its device, with the train/eval flags that it had.

    Args:
        model: the network, `B x ... -> B x K`.
        records: features and labels.
        rows: `N` row numbers of the records; the logits have their order.
        runtime: device and precision; by default, float32 on a GPU if there is one.
        batch_size: records in a forward pass; None: see `choose_batch_size`.

    Returns:
        `N x K` float32 logits on the CPU.

    Raises:
        ModelError: the model does not return finite logits of shape `B x K`.

    >>> import numpy as np
    >>> import expunge
    >>> records = expunge.load_records("digits")
    >>> model = expunge.architecture("mlp", records, widths=(8,), normalise="none").build(seed=0)
    >>> expunge.predict_logits(model, records, np.arange(5)).shape
    torch.Size([5, 10])
    """
    runtime = runtime or Runtime()
    rows = np.asarray(rows, dtype=np.int64)
    if len(rows) == 0:
        return torch.empty(0, records.classes)
    batches = Batches(
        records,
        rows,
        batch_size=batch_size or choose_batch_size(runtime.torch_device),
        device=runtime.torch_device,
        channels_last=runtime.channels_last,
        workers=runtime.workers,
    )
    original_device = next((p.device for p in model.parameters()), torch.device("cpu"))
    model.to(runtime.torch_device)
    try:
        batches = join_single_records(model, batches)
        with runtime.inference_mode(model), global_rng(0, "predictions"):
            logits = torch.cat([model(x).float().to("cpu") for x, _ in batches.in_order()])
    finally:
        model.to(original_device)
    check_logits(logits, records.classes)
    return logits.clone()


def choose_batch_size(device: torch.device) -> int:
    """Records in a forward pass without gradients: 256 on a CPU, 1,024 on other devices.

    On a CPU the activations of larger batches leave its caches, and a convolutional network becomes slower.

    >>> choose_batch_size(torch.device("cpu"))
    256
    """
    return 256 if device.type == "cpu" else 1024


def check_logits(logits: torch.Tensor, classes: int) -> None:
    """Raise ModelError if logits are not finite, or not of shape `N x classes`.

    Args:
        logits: what a model returned for N records.
        classes: number of classes of the records.
    """
    if logits.dim() != 2 or logits.shape[1] != classes:
        raise ModelError(
            f"the model returns logits of shape {tuple(logits.shape[1:])} per record for {classes} classes",
            hint="build the model with one output per class",
        )
    if not torch.isfinite(logits).all():
        hint = "its weights are damaged, or training diverged"
        raise ModelError("the model returns NaN or infinite logits", hint=hint)


def accuracy(model: nn.Module, records: Records, rows: NDArray[np.int64], *, runtime: Runtime | None = None) -> float:
    """Compute the accuracy on records, in percent: 100 * mean(argmax logits = label).

    Args:
        model: the network, `B x ... -> B x K`.
        records: features and labels.
        rows: `N` row numbers of the records.
        runtime: device and precision.

    Returns:
        The accuracy in [0, 100]; NaN for no records.

    Raises:
        ModelError: the model does not return finite logits of shape `B x K`.

    >>> import numpy as np
    >>> import torch
    >>> import expunge
    >>> from expunge.training import accuracy
    >>> records = expunge.load_records("digits")
    >>> model = expunge.architecture("mlp", records, widths=(), normalise="none").build(seed=0)
    >>> with torch.no_grad():
    ...     _ = model.classifier.weight.zero_()
    ...     _ = model.classifier.bias.copy_(torch.eye(10)[7])
    >>> sevens = np.flatnonzero(records.labels == 7)
    >>> accuracy(model, records, sevens)  # the model always predicts class 7
    100.0
    """
    if len(rows) == 0:
        return float("nan")
    predicted = predict_logits(model, records, rows, runtime=runtime).argmax(1).numpy()
    return 100.0 * float((predicted == records.labels[rows]).mean())


def make_validator(
    records: Records, rows: NDArray[np.int64], runtime: Runtime
) -> Callable[[nn.Module], tuple[float, int]] | None:
    """Return the `validate` argument of `fit`; None if there are no validation records."""
    if len(rows) == 0:
        return None
    return lambda model: (accuracy(model, records, rows, runtime=runtime), len(rows))
