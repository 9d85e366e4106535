"""Features of a network: what its output layer gets."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from expunge.core.errors import ModelError
from expunge.core.probe import make_probe
from expunge.core.seeds import global_rng, torch_generator
from expunge.core.trained import clone_model
from expunge.data.batches import Batches
from expunge.data.records import Records
from expunge.training.batchnorm import join_single_records
from expunge.training.predict import choose_batch_size
from expunge.training.runtime import Runtime


def find_output_layer(model: nn.Module, records: Records) -> str | None:
    """Path of the linear layer whose output is that of the network, with one row for each class; None if there is none.

    Args:
        model: the network; not modified.
        records: give the shape of a record and the number of classes.
    """
    copied = clone_model(model).cpu().eval()
    outputs: dict[str, torch.Tensor] = {}
    for path, module in copied.named_modules():
        if isinstance(module, nn.Linear) and module.out_features == records.classes:
            module.register_forward_hook(lambda module, inputs, output, path=path: outputs.update({path: output}))
    x = make_probe(model, records.input_shape, 2, torch_generator(0, "output layer"))
    with torch.no_grad():
        logits = copied(x)
    found = [path for path, output in outputs.items() if path and output is logits]
    return found[0] if found else None


def require_output_layer(model: nn.Module, records: Records) -> str:
    """The path of `find_output_layer`.

    Raises:
        ModelError: there is none.
    """
    path = find_output_layer(model, records)
    if path is None:
        raise ModelError(
            "the logits are not the output of a linear layer, so the network has no features for another task",
            where=type(model).__name__,
        )
    return path


def compute_features(
    model: nn.Module,
    source: Records,
    records: Records,
    rows: NDArray[np.int64],
    *,
    runtime: Runtime | None = None,
    batch_size: int | None = None,
) -> NDArray[np.float32]:
    """Compute the input of the output layer for records, in evaluation mode and without augmentation.

    Args:
        model: the network, with a linear output layer; not modified.
        source: records of the task that it was trained on; they give its number of classes.
        records: the records to compute features of, of the same input shape.
        rows: `N` row numbers of them.
        runtime: device and precision.
        batch_size: records in a forward pass; None: see `choose_batch_size`.

    Returns:
        `N x F` numbers.

    Raises:
        ModelError: the logits are not the output of a linear layer, or the records have another shape.

    >>> import numpy as np
    >>> import expunge
    >>> from expunge.training.transfer import compute_features
    >>> records = expunge.load_records("digits")
    >>> model = expunge.architecture("mlp", records, widths=(8,), normalise="none").build(seed=0)
    >>> compute_features(model, records, records, np.arange(5)).shape
    (5, 8)
    """
    runtime = runtime or Runtime()
    if records.input_shape != source.input_shape:
        raise ModelError(
            f"the network takes records of shape {source.input_shape}, not {records.input_shape}", where=records.name
        )
    copied = runtime.place(clone_model(model))
    found: list[torch.Tensor] = []
    layer = copied.get_submodule(require_output_layer(model, source))
    layer.register_forward_pre_hook(lambda module, inputs: found.append(inputs[0].detach().float().cpu()))
    batches = Batches(
        records,
        rows,
        batch_size=batch_size or choose_batch_size(runtime.torch_device),
        device=runtime.torch_device,
        channels_last=runtime.channels_last,
    )
    batches = join_single_records(copied, batches)
    with runtime.inference_mode(copied), global_rng(0, "predictions"):
        for x, _ in batches.in_order():
            copied(x)
    return torch.cat(found).numpy() if found else np.empty((0, 0), dtype=np.float32)
