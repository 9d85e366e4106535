"""Physical removal by Torch-Pruning (Fang et al. 2023), an optional dependency: the network keeps its own class.

Torch-Pruning follows autograd's graph and couples whole layers. The rows to remove are found by the slots of
`expunge.sparsity.channels`; Torch-Pruning gets them layer by layer and removes what it considers coupled with them. If
it couples other channels than the slots do, as on option-A shortcuts, the removal is refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from expunge.core.errors import MaskError
from expunge.core.hashing import plain_name
from expunge.core.probe import make_probe
from expunge.core.seeds import torch_generator

_ALTERNATIVES = "use backend=slots, which couples single channels; or export the masked network dense, with zeros"


def remove_channels(model: nn.Module, rows: Mapping[str, Sequence[int]], input_shape: Sequence[int]) -> nn.Module:
    """Remove output channels of layers, and what is coupled with them, from a network in place.

    Args:
        model: a network that the caller's code does not use, its masked channels zero; it is changed.
        rows: weight name of a convolution or linear layer to the rows to remove, for every layer that loses any.
        input_shape: shape of one record.

    Raises:
        MaskError: Torch-Pruning is not installed, cannot follow the network, or couples other channels.
    """
    try:
        import torch_pruning
    except ImportError as error:
        raise MaskError(
            "Torch-Pruning is not installed",
            where="backend torch-pruning",
            hint="pip install 'expunge[torch-pruning]', or use backend=slots",
        ) from error
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    model.requires_grad_(True)
    layers = {plain_name(f"{name}.weight"): module for name, module in model.named_modules()}
    before = {name: len(_weight_of(layers[name])) for name in rows}
    x = make_probe(model, input_shape, 2, torch_generator(0, "torch-pruning"), normal=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = _call(lambda: torch_pruning.DependencyGraph().build_dependency(model, example_inputs=x))
        for name, removed in rows.items():
            layer = layers[name]
            if len(_weight_of(layer)) == before[name] - len(removed):
                continue  # already removed with a coupled layer
            if len(_weight_of(layer)) != before[name]:
                break
            linear = isinstance(layer, nn.Linear)
            how = torch_pruning.prune_linear_out_channels if linear else torch_pruning.prune_conv_out_channels
            _call(
                lambda layer=layer, how=how, removed=removed: graph.get_pruning_group(layer, how, list(removed)).prune()
            )
    wrong = [name for name, removed in rows.items() if len(_weight_of(layers[name])) != before[name] - len(removed)]
    if wrong:
        raise MaskError(
            f"Torch-Pruning couples other channels than the network does: {len(rows[wrong[0]])} of {before[wrong[0]]} "
            f"channels were to be removed, and {len(_weight_of(layers[wrong[0]]))} are left",
            where=wrong[0],
            hint=_ALTERNATIVES,
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    return model.eval()


def _weight_of(layer: Any) -> torch.Tensor:
    weight: torch.Tensor = layer.weight
    return weight


def _call(step: Any) -> Any:
    """Call a function of Torch-Pruning; raise MaskError for anything that it raises."""
    try:
        return step()
    except Exception as error:
        raise MaskError(
            f"Torch-Pruning cannot follow the network ({type(error).__name__}: {error})",
            where="backend torch-pruning",
            hint=_ALTERNATIVES,
        ) from error
