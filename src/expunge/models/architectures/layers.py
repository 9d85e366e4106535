"""Shared by several networks: checks of shapes and options, and initial weights."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from expunge.core.errors import ConfigError, ModelError
from expunge.core.reading.limits import LAYER_SIZE, LAYERS


def check_image_shape(model: str, input_shape: tuple[int, ...], least: int = 1) -> tuple[int, int, int]:
    """Return `C, H, W` of an image input.

    Raises:
        ModelError: records are not images, or are smaller than `least` x `least`.
    """
    if len(input_shape) != 3:
        raise ModelError(
            f"{model} takes images (C x H x W), the records have shape {input_shape}",
            where=model,
            hint="mlp takes any shape; cnn1d takes sensor windows (C x T)",
        )
    channels, height, width = input_shape
    if min(height, width) < least:
        raise ModelError(
            f"{model} takes images of at least {least} x {least}, the records are {height} x {width}",
            where=model,
            hint="small-cnn takes small images",
        )
    return channels, height, width


def check_positive_ints(model: str, option: str, values: Sequence[int], count: int | None = None) -> tuple[int, ...]:
    """Return the values of an option that lists sizes.

    Raises:
        ConfigError: the values are not positive integers, not `count` of them, or above `LAYERS` or `LAYER_SIZE`.
    """
    listed = tuple(values) if isinstance(values, (list, tuple)) else (values,)
    if len(listed) > LAYERS:
        raise ConfigError(f"{option} of {model} has {len(listed):,} layers; at most {LAYERS:,} are built", where=option)
    if any(isinstance(v, bool) or not isinstance(v, int) or v < 1 for v in listed):
        raise ConfigError(f"{option} of {model} are positive integers, not {repr(values)[:200]}", where=option)
    if max(listed, default=1) > LAYER_SIZE:
        raise ConfigError(
            f"{option} of {model} has {str(max(listed))[:30]}; at most {LAYER_SIZE:,} is built", where=option
        )
    if count is not None and len(listed) != count:
        raise ConfigError(f"{option} of {model} are {count} numbers, not {len(listed)}", where=option)
    return listed


def check_fraction(model: str, option: str, value: float) -> float:
    """Return the value of an option in [0, 1).

    Raises:
        ConfigError: the value is outside.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise ConfigError(f"{option} of {model} is a number in [0, 1), not {value!r}", where=option)
    return float(value)


def init_kaiming_fan_out(network: nn.Module) -> None:
    """Draw convolution weights ~ N(0, 2 / fan_out), set BatchNorm scale 1 and shift 0 [He2015]_; keep linear layers.

    .. [He2015] He, Zhang, Ren, Sun: Delving deep into rectifiers, ICCV 2015.
    """
    for module in network.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d)):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
