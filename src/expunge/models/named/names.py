"""The names `hf:`, `timm:` and `torchvision:`, and the factories that they stand for."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

from expunge.core.errors import ConfigError

from .hugging_face import build_hugging_face
from .image_models import build_timm, build_torchvision

#: Prefixes of names, and what follows.
PREFIXES: dict[str, str] = {
    "hf": "a folder with the config.json of a Hugging Face classifier",
    "timm": "a model of timm",
    "torchvision": "a model of torchvision",
}
_BUILD: dict[str, Callable[..., nn.Module]] = {
    "hf": build_hugging_face,
    "timm": build_timm,
    "torchvision": build_torchvision,
}


def is_named(name: str) -> bool:
    """Whether the name of a model is that of another library.

    Example:
        >>> is_named("timm:resnet18"), is_named("my_package:make")
        (True, False)
    """
    return name.partition(":")[0] in PREFIXES and ":" in name


def find_named(name: str) -> Callable[..., nn.Module]:
    """The factory of a name, `(input_shape, classes, **options) -> model`; the library is imported when it is called.

    Raises:
        ConfigError: nothing follows the prefix.

    Example:
        >>> find_named("timm:")
        Traceback (most recent call last):
        ...
        expunge.core.errors.ConfigError: timm: a name follows the colon: a model of timm
    """
    prefix, _, rest = name.partition(":")
    if not rest.strip():
        raise ConfigError(f"a name follows the colon: {PREFIXES[prefix]}", where=prefix)
    return functools.partial(_call, _BUILD[prefix], rest)


def _call(
    build: Callable[..., nn.Module], name: str, *, input_shape: tuple[int, ...], classes: int, **options: Any
) -> nn.Module:
    return build(name, input_shape, classes, options)
