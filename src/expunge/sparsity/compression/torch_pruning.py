"""Physical removal by Torch-Pruning (Fang et al. 2023), where it is installed: the network keeps its own class.

It follows autograd's graph and couples whole layers. What is to go is decided elsewhere, by the slots of `channels`;
Torch-Pruning is told so layer by layer, and takes along what it thinks is coupled. Where it thinks otherwise, as on
option-A shortcuts, the removal is refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from expunge.core.errors import MaskError
from expunge.core.hashing import plain_name
from expunge.core.seeds import torch_generator

_OTHERWISE = "remove with engine=slots, which follows single channels; or export the masked network dense, with zeros"


def remove(model: nn.Module, gone: Mapping[str, Sequence[int]], input_shape: Sequence[int]) -> nn.Module:
    """The network without some output channels of its layers, and without what is coupled with them.

    Args:
        model: a network that expunge owns, its masked channels zero; it is cut in place.
        gone: weight name of a convolution or linear layer to the rows that go, for every layer that loses any.
        input_shape: shape of one record.

    Raises:
        MaskError: Torch-Pruning is not installed, cannot follow the network, or couples other channels.
    """
    try:
        import torch_pruning
    except ImportError as error:
        raise MaskError(
            "Torch-Pruning is not installed",
            where="engine torch-pruning",
            hint="pip install 'expunge[torch-pruning]', or remove with engine=slots",
        ) from error
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    model.requires_grad_(True)
    layers = {plain_name(f"{name}.weight"): module for name, module in model.named_modules()}
    before = {name: len(_weight(layers[name])) for name in gone}
    x = torch.randn(2, *input_shape, generator=torch_generator(0, "torch-pruning"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = _understood(lambda: torch_pruning.DependencyGraph().build_dependency(model, example_inputs=x))
        for name, rows in gone.items():
            layer = layers[name]
            if len(_weight(layer)) == before[name] - len(rows):
                continue  # it went with a layer that it is coupled to
            if len(_weight(layer)) != before[name]:
                break
            linear = isinstance(layer, nn.Linear)
            how = torch_pruning.prune_linear_out_channels if linear else torch_pruning.prune_conv_out_channels
            _understood(lambda layer=layer, how=how, rows=rows: graph.get_pruning_group(layer, how, list(rows)).prune())
    wrong = [name for name, rows in gone.items() if len(_weight(layers[name])) != before[name] - len(rows)]
    if wrong:
        raise MaskError(
            f"Torch-Pruning couples other channels than the network does: {len(gone[wrong[0]])} of {before[wrong[0]]} "
            f"channels go, and it leaves {len(_weight(layers[wrong[0]]))}",
            where=wrong[0],
            hint=_OTHERWISE,
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    return model.eval()


def _weight(layer: Any) -> torch.Tensor:
    weight: torch.Tensor = layer.weight
    return weight


def _understood(step: Any) -> Any:
    """The step's result; whatever Torch-Pruning raises about a network that it cannot follow, as a MaskError."""
    try:
        return step()
    except Exception as error:
        raise MaskError(
            f"Torch-Pruning cannot follow the network ({type(error).__name__}: {error})",
            where="engine torch-pruning",
            hint=_OTHERWISE,
        ) from error
