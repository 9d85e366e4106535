"""Which weights may be pruned: explicit, by kind of layer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from expunge.core.errors import ConfigError, MaskError, unknown_name_hint
from expunge.core.hashing import plain_name

KINDS: dict[str, tuple[type[nn.Module], ...]] = {
    "conv": (nn.Conv1d, nn.Conv2d, nn.Conv3d),
    "linear": (nn.Linear,),
}


def kind_names(layers: object, where: str = "layers") -> tuple[str, ...]:
    """Kinds of layers as a tuple of names; whether they are known is not asked.

    Raises:
        ConfigError: one text, or something that is not a list of texts.
    """
    names = None if isinstance(layers, str) or not isinstance(layers, Iterable) else tuple(layers)
    if names is None or not all(isinstance(name, str) for name in names):
        hint = f"layers=[{layers if isinstance(layers, str) else 'conv, linear'}]"
        raise ConfigError(f"layers is a list of kinds, not {layers!r}", where=where, hint=hint)
    return names


def prunable(model: nn.Module, kinds: Sequence[str] = ("conv",)) -> dict[str, nn.Parameter]:
    """Weights of the layers of these kinds, by name; biases, BatchNorm and anything else never take part.

    Paper A prunes `("conv",)`: every convolution, stem and 1 x 1 shortcuts included. `("conv", "linear")` adds the
    linear layers, the classifier too. A weight that several layers share is one weight, under its first name.

    Raises:
        ConfigError: unknown kind.
        MaskError: the model has no such layer.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigError(f"unknown kind of layer {kind!r}", where="layers", hint=unknown_name_hint(kind, KINDS))
    types = tuple(t for kind in kinds for t in KINDS[kind])
    held = [module.weight for module in model.modules() if isinstance(module, types)]
    wanted = {id(weight) for weight in held}
    found = {plain_name(name): parameter for name, parameter in model.named_parameters() if id(parameter) in wanted}
    if not found:
        raise MaskError(
            f"the model has no {' or '.join(kinds) or 'prunable'} layer to prune",
            hint="choose layers=[conv, linear], or [linear] for a network without convolutions",
        )
    return found
