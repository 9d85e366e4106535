"""A custom network, `package.module:factory`: found and called through the gate `expunge.core.trust`."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from expunge.core.errors import ConfigError, ModelError, unknown_name_hint
from expunge.core.trust import permit, reachable, resolve


def is_own(name: str) -> bool:
    """Whether a model's name means a user's factory."""
    return ":" in name


def find_factory(name: str) -> Callable[..., Any]:
    """The callable that `package.module:factory` names: an nn.Module class or a function defined in that package.

    Raises:
        TrustError: nobody agreed to run it, or it is never called (`expunge.core.trust`); nothing was imported then.
        ModelError: the module or the attribute does not exist, importing failed, or it cannot be called.
    """
    return resolve(name, accepts=_is_network, wanted="a torch.nn.Module", error=ModelError)


def permit_factory(name: str) -> None:
    """Raise TrustError or ModelError unless a factory that a file names may be imported; nothing is imported."""
    permit(name, error=ModelError)


def _is_network(found: type) -> bool:
    return issubclass(found, nn.Module)


def _takes(factory: Callable[..., Any]) -> tuple[set[str], bool]:
    """Names that the factory takes as keywords, and whether it takes any keyword."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return set(), True
    names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return names, any(p.kind is p.VAR_KEYWORD for p in parameters)


def check_own_options(name: str, options: Mapping[str, Any]) -> None:
    """Raise unless the factory exists and takes every option.

    Raises:
        TrustError, ModelError: see `find_factory`.
        ConfigError: it does not take an option.
    """
    names, anything = _takes(find_factory(name))
    unknown = [key for key in options if key not in names]
    if unknown and not anything:
        raise ConfigError(
            f"the factory takes no option {unknown[0]!r}",
            where=name,
            hint=unknown_name_hint(unknown[0], names - {"input_shape", "classes"}),
        )


def build_own(name: str, options: Mapping[str, Any], input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """Call the factory and check what it returns; draws come from the global generators, which the caller seeds.

    The factory is called as `factory(input_shape=..., classes=..., **options)` where its signature takes these, else
    with what it takes. The result is a deep copy on the CPU in float32: a model that the factory keeps is not touched.

    Raises:
        TrustError: see `find_factory`.
        ModelError: the factory fails, returns no module, or the module does not map `2 x ...` zeros to `2 x K` logits.
    """
    factory = find_factory(name)
    names, anything = _takes(factory)
    given = {"input_shape": input_shape, "classes": classes}
    arguments = {key: value for key, value in given.items() if anything or key in names}
    try:
        with reachable(name):
            made = factory(**arguments, **options)
    except Exception as error:
        raise ModelError(f"the factory failed ({type(error).__name__}: {error})", where=name) from error
    if not isinstance(made, nn.Module):
        raise ModelError(
            f"the factory returned an object of type {type(made).__name__}, not a torch.nn.Module", where=name
        )
    odd = [key for key, value in made.state_dict().items() if not isinstance(value, torch.Tensor)]
    if odd:
        raise ModelError("the model keeps state that is not a tensor, which a weights file cannot hold", where=odd[0])
    network = copy.deepcopy(made).to(device="cpu", dtype=torch.float32)
    check_output(network, input_shape, classes, where=name)
    return network.train()


def check_output(network: nn.Module, input_shape: tuple[int, ...], classes: int, *, where: str) -> None:
    """Raise ModelError unless the network, in eval mode, maps 2 zero records to `2 x classes` numbers."""
    network.eval()
    zeros = torch.zeros(2, *input_shape)
    try:
        with torch.no_grad():
            output = network(zeros)
    except Exception as error:
        raise ModelError(
            f"the model does not take records of shape {input_shape} ({type(error).__name__}: {error})", where=where
        ) from error
    if not isinstance(output, torch.Tensor):
        raise ModelError(f"the model returns a {type(output).__name__}, not a tensor of logits", where=where)
    if output.dim() != 2 or output.shape[0] != 2:
        raise ModelError(
            f"the model maps 2 records to a tensor of shape {tuple(output.shape)}, not 2 x {classes} logits",
            where=where,
        )
    if output.shape[1] != classes:
        raise ModelError(
            f"wrong number of classes: the model has {output.shape[1]} outputs, the data {classes} classes",
            where=where,
            hint=f"build it with {classes} outputs, or use the data that it was trained on",
        )
