"""The sections `model` and `training`, from weights: a folder or a safetensors file. No model is built."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from expunge.core.show import repr_fields

from .data import read_json_file

_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.txt")


@dataclasses.dataclass(frozen=True)
class FoundModel:
    """What was inferred of the model.

    Attributes:
        section: the section `model`.
        training: the section `training`.
        questions: key, text and line of what is missing or doubtful.
        split: the split.json beside the weights, or None.
        knows_recipe: whether the section `training` is that of the training.
    """

    section: Mapping[str, Any]
    training: Mapping[str, Any]
    questions: tuple[tuple[str, str, str], ...] = ()
    split: Path | None = None
    knows_recipe: bool = False

    __repr__ = repr_fields


def looks_like_model(path: Path) -> bool:
    """Whether a path is weights, or a folder with them."""
    if path.is_file():
        return path.suffix == ".safetensors"
    return (path / "config.json").is_file() or (path / "trained.json").is_file()


def has_tokenizer(path: Path) -> bool:
    """Whether a folder has the files of a tokenizer."""
    return path.is_dir() and any((path / name).is_file() for name in _TOKENIZER)


def find_channels(path: Path) -> int | None:
    """Find the channels of the images that weights read, 1 or 3, by the shapes of their convolutions; None: not known.

    Args:
        path: a folder with model.safetensors, or a safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path / "model.safetensors" if path.is_dir() else path, framework="pt") as file:  # its header
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError):  # `check` names it
        return None
    inputs = {shape[1] for shape in shapes if len(shape) == 4}
    return next((channels for channels in (3, 1) if channels in inputs), None)  # 1 is also that of depthwise layers


def infer_model(path: Path) -> FoundModel:
    """Infer the sections `model` and `training` of weights.

    Args:
        path: a folder of `save_pretrained` or `save_trained`, or a safetensors file.
    """
    directory = path if path.is_dir() else path.parent
    recorded = read_json_file(directory / "trained.json")
    if isinstance(recorded, dict) and (path.is_dir() or path.name == "model.safetensors"):
        return _infer_recorded(directory, recorded)
    if path.is_dir():
        return _infer_pretrained(path)
    if (directory / "config.json").is_file() and path.name == "model.safetensors":
        return _infer_pretrained(directory)
    text = "a safetensors file does not say which network it fits"
    line = "name: package.module:factory   # or timm:NAME, torchvision:NAME, hf:FOLDER, or one of expunge"
    return FoundModel({"name": "mlp", "weights": str(path)}, {"recipe": "one-cycle"}, questions=(("name", text, line),))


def _infer_recorded(directory: Path, recorded: Mapping[str, Any]) -> FoundModel:
    """A model directory of expunge: everything is recorded."""
    provenance = recorded.get("provenance") if isinstance(recorded.get("provenance"), dict) else {}
    assert isinstance(provenance, dict)
    architecture = provenance.get("architecture") or {}
    section: dict[str, Any] = {"name": str(architecture.get("name", "mlp"))}
    if architecture.get("options"):
        section["options"] = architecture["options"]
    section["weights"] = str(directory / "model.safetensors")
    if (directory / "mask.safetensors").is_file():
        section["mask"] = str(directory / "mask.safetensors")
    recipe = dict(provenance.get("recipe") or {})
    training: dict[str, Any] = {"recipe": "custom", **{k: v for k, v in recipe.items() if k != "name"}}
    if not recipe:
        training = {"recipe": "one-cycle"}
    split = directory / "split.json"
    return FoundModel(section, training, split=split if split.is_file() else None, knows_recipe=bool(recipe))


def _infer_pretrained(directory: Path) -> FoundModel:
    """A folder of `save_pretrained`."""
    section = {"name": f"hf:{directory}", "weights": str(directory)}
    arguments = next((at for at in directory.glob("*training_args*.json")), None)
    if arguments is not None:
        return FoundModel(section, {"from": str(arguments)}, knows_recipe=True)
    training = {"recipe": "custom", "epochs": 3, "batch_size": 16, "learning_rate": 5e-5, "optimiser": "adamw",
                "lr_schedule": "linear", "weight_decay": 0.0, "clip_norm": 1.0}  # fmt: skip
    weights = [
        file.name for file in directory.glob("*") if file.name.startswith("model") and "safetensors" in file.name
    ]
    if weights:
        return FoundModel(section, training)
    text = "the folder has no model.safetensors; other formats can run code and are not read"
    return FoundModel(section, training, questions=(("weights", text, "save_pretrained(folder) writes it"),))
