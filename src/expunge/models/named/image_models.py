"""Models of timm and torchvision by name, with initial weights drawn here: nothing is downloaded."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from torch import nn

from expunge.core.errors import ConfigError, ModelError, unknown_name_hint

#: Options that would load weights of somebody else.
_LOADING = ("pretrained", "weights", "checkpoint", "cache_dir")


def build_timm(name: str, input_shape: tuple[int, ...], classes: int, options: Mapping[str, Any]) -> nn.Module:
    """Make a model of timm for images `C x H x W`.

    Args:
        name: its name in timm, `resnet18` or `resnet18.a1_in1k`.
        input_shape: gives the number of channels.
        classes: number of classes.
        options: further arguments of `timm.create_model`.

    Raises:
        ConfigError: timm is not installed, has no such model, or does not take an option; or an option loads weights.
        ModelError: the records are no images.
    """
    timm = _import("timm", "timm")
    where = f"timm:{name}"
    if not timm.is_model(name.partition(".")[0]) or any(mark in name for mark in ":/\\"):
        raise ConfigError("timm has no such model", where=where, hint=unknown_name_hint(name, timm.list_models()))
    given = _check_options(options, where)
    given.setdefault("in_chans", _count_channels(input_shape, where))
    return _make(lambda: timm.create_model(name, pretrained=False, num_classes=classes, **given), where)


def build_torchvision(name: str, input_shape: tuple[int, ...], classes: int, options: Mapping[str, Any]) -> nn.Module:
    """Make a model of torchvision for images `3 x H x W`.

    Args:
        name: its name in torchvision, `resnet18`.
        input_shape: must have 3 channels.
        classes: number of classes.
        options: further arguments of `torchvision.models.get_model`.

    Raises:
        ConfigError: torchvision is not installed, has no such model, or does not take an option; or an option loads
            weights.
        ModelError: the records are no images of 3 channels.
    """
    models = _import("torchvision.models", "torchvision")
    where = f"torchvision:{name}"
    known = models.list_models(module=models)
    if name not in known:
        raise ConfigError("torchvision has no such classifier", where=where, hint=unknown_name_hint(name, known))
    given = _check_options(options, where)
    channels = _count_channels(input_shape, where)
    if channels != 3:
        raise ModelError(f"models of torchvision take 3 channels, the records have {channels}", where=where,
                         hint="repeat the channel when the images are read, or name the model in timm")  # fmt: skip
    if name in ("googlenet", "inception_v3"):  # their auxiliary outputs exist in training mode only
        given.setdefault("aux_logits", False)
        given.setdefault("init_weights", True)
    return _make(lambda: models.get_model(name, weights=None, num_classes=classes, **given), where)


def _import(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == package
        extra = 'pip install "expunge[timm]"' if package == "timm" else "pip install torchvision"
        raise ConfigError(
            f"{package} is not installed" if missing else f"{package} cannot be imported here ({str(error)[:160]})",
            where=package,
            hint=extra if missing else f"install the build of {package} that belongs to this build of torch",
        ) from error


def _count_channels(input_shape: tuple[int, ...], where: str) -> int:
    if len(input_shape) != 3:
        raise ModelError(f"the model takes images (C x H x W), the records have shape {input_shape}", where=where)
    return input_shape[0]


def _check_options(options: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The options as keyword arguments; tuples that were lists stay tuples."""
    for key in options:
        if key.startswith(_LOADING):
            raise ConfigError(f"the option {key!r} would load weights that are not declared", where=where,
                              hint="model.initial declares a start, model.weights a trained model")  # fmt: skip
    return dict(options)


def _make(build: Any, where: str) -> nn.Module:
    try:
        made: nn.Module = build()
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"the model cannot be made ({type(error).__name__}: {str(error)[:200]})", where=where
        ) from error
    return made
