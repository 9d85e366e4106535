"""A Hugging Face model as the folder that its own `from_pretrained` reads."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from expunge.core.errors import FileError, ModelError
from expunge.core.files import PathLike, staged_directory
from expunge.core.probe import make_probe
from expunge.core.trained import clone_model
from expunge.models.call import find_call, unadapt

from .hugging_face import offline, quiet

#: Files of a tokenizer or an image processor that are copied beside the weights.
COPIED_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
    "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model",
    "preprocessor_config.json", "processor_config.json", "feature_extractor_config.json",
)  # fmt: skip


def save_pretrained(
    model: nn.Module, folder: PathLike, *, input_shape: tuple[int, ...] = (), files_from: PathLike | None = None
) -> float:
    """Write a Hugging Face model as `config.json` and `model.safetensors`; `from_pretrained` of its class reads them.

    The folder is read back, and the logits on a batch of made-up records are compared, before it appears.

    Args:
        model: the model, adapted or of the user's own class; not modified.
        folder: a new or empty folder.
        input_shape: shape of one record; (): the logits are not compared.
        files_from: a folder whose tokenizer or image processor files are copied.

    Returns:
        The largest absolute difference of the logits: 0.0 where they were compared.

    Raises:
        ModelError: it is no model of transformers, or the folder gives other logits.
        FileError: the folder is not empty, or cannot be written.

    Example:
        >>> save_pretrained(nn.Linear(2, 1), "folder")
        Traceback (most recent call last):
        ...
        expunge.core.errors.ModelError: Linear: is not a model of transformers, so it has no config.json
          hint: ...
    """
    own: Any = unadapt(model)
    if not hasattr(own, "save_pretrained") or not hasattr(own, "config"):
        raise ModelError(
            "is not a model of transformers, so it has no config.json",
            where=type(own).__name__,
            hint="format=dense writes its weights as safetensors; a network with input normalisation before it is one "
            "of expunge: name the model with normalise='none'",
        )
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileError("exists and is not an empty folder; nothing was written", where=target)
    with staged_directory(target) as temporary, offline(), quiet():
        own = clone_model(own).cpu().eval()
        own.save_pretrained(temporary, safe_serialization=True)
        for name in COPIED_FILES:
            if files_from is not None and (Path(files_from) / name).is_file():
                shutil.copyfile(Path(files_from) / name, temporary / name)
        read = type(own).from_pretrained(temporary, local_files_only=True, use_safetensors=True).eval()
        return _compare(model, own, read, input_shape)


def _compare(model: nn.Module, own: nn.Module, read: nn.Module, input_shape: tuple[int, ...]) -> float:
    call = find_call(model)
    if not input_shape or call is None:
        return 0.0
    positional, named = call.arguments(make_probe(model, input_shape, 2, torch.Generator().manual_seed(0)))
    with torch.no_grad():
        found, wanted = (call.select(each(*positional, **named)) for each in (read, own))
    difference = float((found - wanted).abs().max())
    if difference:
        raise ModelError(
            f"the written folder gives other logits (by {difference:.3g}); it is not kept",
            where=type(own).__name__,
            hint="the class does not store all of its state; format=dense writes the tensors",
        )
    return difference
