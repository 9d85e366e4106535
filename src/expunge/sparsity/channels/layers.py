"""Which weights can be pruned, selected by layer type."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from expunge.core.errors import ConfigError, MaskError, unknown_name_hint
from expunge.core.hashing import plain_name

LAYER_TYPES: dict[str, tuple[type[nn.Module], ...]] = {
    "conv": (nn.Conv1d, nn.Conv2d, nn.Conv3d),
    "linear": (nn.Linear,),
}


def parse_layer_types(layers: object, where: str = "layers") -> tuple[str, ...]:
    """Return layer types as a tuple of names, without checking that the names are known.

    Raises:
        ConfigError: a single string, or something that is not a list of strings.
    """
    names = None if isinstance(layers, str) or not isinstance(layers, Iterable) else tuple(layers)
    if names is None or not all(isinstance(name, str) for name in names):
        hint = f"layers=[{layers if isinstance(layers, str) else 'conv, linear'}]"
        raise ConfigError(f"layers must be a list of layer types, not {layers!r}", where=where, hint=hint)
    return names


def check_layer_types(layers: object, where: str = "layers") -> tuple[str, ...]:
    """Return known layer types as a tuple of names.

    Raises:
        ConfigError: not a list of names, or an unknown layer type.
    """
    names = parse_layer_types(layers, where)
    for name in names:
        if name not in LAYER_TYPES:
            raise ConfigError(f"unknown layer type {name!r}", where=where, hint=unknown_name_hint(name, LAYER_TYPES))
    return names


def prunable_weights(model: nn.Module, layer_types: Sequence[str] = ("conv",)) -> dict[str, nn.Parameter]:
    """Return the weights of all layers of the given types, by parameter name.

    Biases, BatchNorm parameters and other layers are never included. [Jia2023] prunes `("conv",)`: every convolution,
    the stem and 1 x 1 shortcuts included. `("conv", "linear")` adds the linear layers, the classifier too. A weight
    that several layers share is listed once, under its first name.

    Args:
        model: the network.
        layer_types: `conv`, `linear` or both.

    Raises:
        ConfigError: unknown layer type.
        MaskError: the model has no such layer, or a parametrisation or hook computes the weight of one.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 10))
        >>> {name: tuple(weight.shape) for name, weight in prunable_weights(model, ["conv", "linear"]).items()}
        {'0.weight': (4, 1, 3, 3), '3.weight': (10, 144)}
    """
    types = tuple(t for layer_type in check_layer_types(layer_types) for t in LAYER_TYPES[layer_type])
    layers = {path: module for path, module in model.named_modules() if isinstance(module, types)}
    own = {id(parameter) for parameter in model.parameters()}
    computed = [path for path, layer in layers.items() if id(layer.weight) not in own]
    if computed:
        raise MaskError(
            f"the weight is computed from other parameters, so no mask can name it ({len(computed)} such layers)",
            where=plain_name(f"{computed[0]}.weight" if computed[0] else "weight"),
            hint="call parametrize.remove_parametrizations, remove_weight_norm or prune.remove on the layer, or leave "
            "its layer type out",
        )
    wanted = {id(layer.weight) for layer in layers.values()}
    found = {plain_name(name): parameter for name, parameter in model.named_parameters() if id(parameter) in wanted}
    if not found:
        raise MaskError(
            f"the model has no {' or '.join(layer_types) or 'prunable'} layer to prune",
            hint="choose layers=[conv, linear], or [linear] for a network without convolutions",
        )
    return found
