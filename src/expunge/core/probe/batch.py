"""A batch of made-up records for a model: floats, or the named and integer inputs that an adapted model describes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from expunge.core.seeds import global_rng, torch_generator


def find_input_fields(model: nn.Module) -> Any:
    """The description of the inputs of an adapted model (`expunge.models.call`), also inside a wrapper; else None.

    Example:
        >>> find_input_fields(nn.Linear(2, 1)) is None
        True
    """
    for _ in range(8):
        found = getattr(type(model), "input_fields", None)
        inner = getattr(model, "_orig_mod", getattr(model, "module", None))
        if found is not None or not isinstance(inner, nn.Module):
            return found
        model = inner
    return None


def make_probe(
    model: nn.Module,
    input_shape: Sequence[int],
    count: int,
    generator: torch.Generator | None = None,
    *,
    normal: bool = False,
) -> torch.Tensor:
    """Make records with which a model can be tried, on the CPU.

    Args:
        model: the network; if it takes named or integer inputs, integers are 0 and the padding field is 1.
        input_shape: shape of one record.
        count: number of records.
        generator: of float values, uniform in [0, 1); None: zeros.
        normal: whether float values are drawn from the standard normal distribution instead.

    Example:
        >>> make_probe(nn.Linear(2, 1), (2,), 3).tolist()
        [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    """
    fields = find_input_fields(model)
    if fields is not None:
        batch: torch.Tensor = fields.probe(count, generator)
        return batch
    if generator is None:
        return torch.zeros(count, *input_shape)
    return (torch.randn if normal else torch.rand)(count, *input_shape, generator=generator)


def run_on_random_records(model: nn.Module, input_shape: Sequence[int], *, count: int = 4) -> None:
    """Run a model twice on a few random records, in the modes that its modules have; its buffers may change.

    Example:
        >>> layer = nn.BatchNorm1d(2)
        >>> run_on_random_records(layer, (2,))
        >>> int(layer.num_batches_tracked)
        2
    """
    device = next((t.device for t in model.state_dict().values()), torch.device("cpu"))
    generator = torch_generator(0, "running tensors")
    with torch.no_grad(), global_rng(0, "running tensors"):
        for _ in range(2):
            model(make_probe(model, input_shape, count, generator).to(device))
