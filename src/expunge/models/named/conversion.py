"""Names of weights in files of transformers: `save_pretrained` may write others than the model itself has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from expunge.core.seeds import global_rng
from expunge.models.call import unadapt

from .hugging_face import offline, quiet


def convert_names(tensors: Mapping[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """Rename the tensors of a file to the names that a model of transformers has, as its own `from_pretrained` does.

    Tensors of other models, and tensors whose names are known, are returned as they are.

    Args:
        tensors: by the names in the file.
        model: the network, adapted or not; not modified.

    Example:
        >>> list(convert_names({"weight": torch.ones(1, 2)}, nn.Linear(2, 1)))
        ['weight']
    """
    own: Any = unadapt(model) if hasattr(model, "from_pretrained") and hasattr(model, "config") else None
    known = model.state_dict() if own is not None else {}
    if own is None or not tensors or all(name in known for name in tensors):
        return dict(tensors)
    dtype = next((tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()), torch.float32)
    try:
        with offline(), quiet(), global_rng(0, "convert names"):
            read, found = type(own).from_pretrained(
                None, config=own.config, state_dict=dict(tensors), output_loading_info=True, dtype=dtype
            )
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, OSError):
        return dict(tensors)  # they do not fit: the caller compares names and shapes, and says how
    if found["mismatched_keys"]:
        return dict(tensors)
    left_out = {*found["missing_keys"]}
    converted = {name: tensor for name, tensor in read.state_dict().items() if name not in left_out}
    return {**converted, **{name: tensors[name] for name in found["unexpected_keys"] if name in tensors}}
