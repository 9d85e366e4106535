"""Weights as other tools store them: a safetensors file, a folder of `save_pretrained`, or one in several shards."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path, PurePath
from typing import Any

import torch

from expunge.core.errors import FileError
from expunge.core.files import PathLike, read_bytes, read_tensors
from expunge.core.reading.limits import BYTES
from expunge.core.reading.strict_json import parse_json

_ONE, _INDEX = "model.safetensors", "model.safetensors.index.json"


def find_weights(path: PathLike) -> Path:
    """The file of the weights: the file itself; of a folder, `model.safetensors`, or the index of its shards.

    Raises:
        FileError: the folder has neither. Pickles (`pytorch_model.bin`, `.pt`, `.ckpt`) are never opened.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    for name in (_ONE, _INDEX):
        if (path / name).is_file():
            return path / name
    files = sorted(file.name for file in path.iterdir() if file.is_file())
    pickles = [name for name in files if name.endswith((".bin", ".pt", ".pth", ".ckpt", ".pkl"))]
    others = [name for name in files if name.endswith(".safetensors")]
    what = f"has no {_ONE}"
    if pickles:
        what += f", only a pickle ({pickles[0]}), which is never opened"
    hint = "write it with model.save_pretrained(folder): it makes safetensors"
    raise FileError(what, where=path, hint=f"name the file: {path / others[0]}" if others and not pickles else hint)


def list_weight_files(path: PathLike) -> list[Path]:
    """The files that `read_weights` reads, in order.

    Raises:
        FileError: see `find_weights`; or the index is damaged, or names a file outside of its folder.
    """
    found = find_weights(path)
    if found.suffix != ".json":
        return [found]
    body = parse_json(read_bytes(found, BYTES).decode("utf-8", "replace"), where=found)
    table = body.get("weight_map") if isinstance(body, Mapping) else None
    if not isinstance(table, Mapping) or not table or not all(isinstance(name, str) for name in table.values()):
        raise FileError("has no weight_map: it is not the index of a model in shards", where=found)
    names = sorted(set(table.values()))
    for name in names:
        if PurePath(name).name != name or not name.endswith(".safetensors"):
            raise FileError(f"names {name[:100]!r}, which is no safetensors file beside it", where=found)
    return [found, *(found.parent / name for name in names)]


def read_weights(path: PathLike) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read weights: their tensors (on the CPU), and the metadata of an expunge file.

    Args:
        path: a safetensors file, the index of shards, or a folder of `save_pretrained`.

    Raises:
        FileError: a file is missing, damaged or a pickle; or two shards have one tensor, or a shard is another one than
            the index says.

    Example:
        >>> from expunge.core.files import write_tensors
        >>> write_tensors("model.safetensors", {"weight": torch.ones(2)})
        >>> list(read_weights(".")[0])
        ['weight']
    """
    files = list_weight_files(path)
    if len(files) == 1:
        return read_tensors(files[0])
    table = parse_json(read_bytes(files[0], BYTES).decode("utf-8", "replace"), where=files[0])["weight_map"]
    tensors: dict[str, torch.Tensor] = {}
    for file in files[1:]:
        for name, tensor in read_tensors(file)[0].items():
            if table.get(name) != file.name:
                raise FileError(f"has {name}, which the index has in {table.get(name)}", where=file)
            tensors[name] = tensor
    missing = [name for name in table if name not in tensors]
    if missing:
        raise FileError(f"{missing[0]} is missing in {table[missing[0]]}", where=files[0])
    return tensors, {}


def find_prefix(names: Collection[str], known: Callable[[str], bool]) -> str:
    """The prefix that all names of a file have before those of the model (`model.` in Lightning); "" if there is none.

    Args:
        names: of the tensors in the file.
        known: whether the model has a tensor of a name.

    Example:
        >>> find_prefix(["model.weight", "model.bias"], {"weight", "bias"}.__contains__)
        'model.'
    """
    parts = next(iter(names), "").split(".")
    for length in range(len(parts)):
        prefix = "".join(f"{part}." for part in parts[:length])
        if not all(name.startswith(prefix) for name in names):
            return ""
        if any(known(name.removeprefix(prefix)) for name in names):
            return prefix
    return ""
