"""The terms of the design as types: masks, splits, requests, trained models, outcomes; errors, hashes, seeds, files.

Each name is imported on first use, so importing `expunge.core` does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lazy import import_on_use

if TYPE_CHECKING:
    from .errors import (
        ConfigError,
        DataError,
        ExpungeError,
        FileError,
        Interrupted,
        MaskError,
        MethodError,
        ModelError,
        RequestError,
        TrainingError,
        TrustError,
    )
    from .files import read_json, read_tensors, staged_directory, staged_file, write_json, write_tensors
    from .hashing import hash_array, hash_json, hash_tensor, hash_tensors
    from .mask import Mask, MaskProvenance
    from .outcome import GUARANTEES, Cost, Outcome
    from .request import ForgetRequest
    from .seeds import derive, epoch_order, global_rng, numpy_generator, record_keys, torch_generator
    from .split import Correction, Split
    from .trained import (
        INFLUENCE_STATE,
        Provenance,
        TensorChange,
        Trained,
        clone_model,
        compare_states,
        find_running_tensors,
        plain_state,
    )

_MODULES: dict[str, tuple[str, ...]] = {
    "errors": (
        "ConfigError",
        "DataError",
        "ExpungeError",
        "FileError",
        "Interrupted",
        "MaskError",
        "MethodError",
        "ModelError",
        "RequestError",
        "TrainingError",
        "TrustError",
    ),
    "files": ("read_json", "read_tensors", "staged_directory", "staged_file", "write_json", "write_tensors"),
    "hashing": ("hash_array", "hash_json", "hash_tensor", "hash_tensors"),
    "mask": ("Mask", "MaskProvenance"),
    "outcome": ("GUARANTEES", "Cost", "Outcome"),
    "request": ("ForgetRequest",),
    "seeds": ("derive", "epoch_order", "global_rng", "numpy_generator", "record_keys", "torch_generator"),
    "split": ("Correction", "Split"),
    "trained": (
        "INFLUENCE_STATE",
        "Provenance",
        "TensorChange",
        "Trained",
        "clone_model",
        "compare_states",
        "find_running_tensors",
        "plain_state",
    ),
}

__all__ = [
    "GUARANTEES",
    "INFLUENCE_STATE",
    "ConfigError",
    "Correction",
    "Cost",
    "DataError",
    "ExpungeError",
    "FileError",
    "ForgetRequest",
    "Interrupted",
    "Mask",
    "MaskError",
    "MaskProvenance",
    "MethodError",
    "ModelError",
    "Outcome",
    "Provenance",
    "RequestError",
    "Split",
    "TensorChange",
    "Trained",
    "TrainingError",
    "TrustError",
    "clone_model",
    "compare_states",
    "derive",
    "epoch_order",
    "find_running_tensors",
    "global_rng",
    "hash_array",
    "hash_json",
    "hash_tensor",
    "hash_tensors",
    "numpy_generator",
    "plain_state",
    "read_json",
    "read_tensors",
    "record_keys",
    "staged_directory",
    "staged_file",
    "torch_generator",
    "write_json",
    "write_tensors",
]

import_on_use(__name__, _MODULES)
