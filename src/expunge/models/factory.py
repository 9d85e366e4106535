"""Custom networks, `package.module:factory`: imported and called after the check of `expunge.core.trust`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from expunge.core.errors import ConfigError, ModelError, TrustError, unknown_name_hint
from expunge.core.trained import clone_model
from expunge.core.trust import ENTRIES, make_importable, permit, resolve


def is_custom(name: str) -> bool:
    """Whether the name of a model is that of a custom factory."""
    return ":" in name


def find_factory(name: str) -> Callable[..., Any]:
    """Import the callable that `package.module:factory` names: an nn.Module class or a function of that package.

    Raises:
        TrustError: the owner did not agree to it, or it is never called (`expunge.core.trust`); nothing was imported.
        ModelError: the module or the attribute does not exist, importing failed, or it cannot be called.
    """
    return resolve(name, accepts=_is_network, wanted="a torch.nn.Module", error=ModelError, entries=True)


def permit_factory(name: str) -> None:
    """Raise TrustError or ModelError unless a factory named in a model directory may be imported; imports nothing."""
    permit(name, error=ModelError, entries=True)


def refuse_entry(name: str) -> None:
    """Raise TrustError for a function of expunge that only model directories name (`core.trust.gate.ENTRIES`)."""
    if name in ENTRIES:
        raise TrustError(
            "is named by model directories only",
            where=name,
            hint="a configuration names the model that is patched; `method: {name: patch}` patches it",
        )


def _is_network(found: type) -> bool:
    return issubclass(found, nn.Module)


def _read_parameters(factory: Callable[..., Any]) -> tuple[set[str], bool]:
    """Return the keyword parameters of the factory, and whether it takes any keyword."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return set(), True
    names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return names, any(p.kind is p.VAR_KEYWORD for p in parameters)


def check_custom_options(name: str, options: Mapping[str, Any]) -> None:
    """Raise unless the factory exists and takes every option.

    Raises:
        TrustError, ModelError: see `find_factory`.
        ConfigError: it does not take an option.
    """
    names, takes_any = _read_parameters(find_factory(name))
    unknown = [key for key in options if key not in names]
    if unknown and not takes_any:
        raise ConfigError(
            f"the factory has no option {unknown[0]!r}",
            where=name,
            hint=unknown_name_hint(unknown[0], names - {"input_shape", "classes"}),
        )


def build_custom(name: str, options: Mapping[str, Any], input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """Call the factory and check its result. The factory draws from the global generators, which the caller seeds.

    The factory is called as `factory(input_shape=..., classes=..., **options)`, without those of the two that its
    signature does not have. The result is a deep copy on the CPU in float32, so a model that the factory stores is not
    modified.

    Raises:
        TrustError: see `find_factory`.
        ModelError: the factory fails, does not return a module, or the module cannot be copied or does not map
            `2 x ...` zeros to `2 x K` logits.
    """
    factory = find_factory(name)
    names, takes_any = _read_parameters(factory)
    given = {"input_shape": input_shape, "classes": classes}
    arguments = {key: value for key, value in given.items() if takes_any or key in names}
    try:
        with make_importable(name):
            made = factory(**arguments, **options)
    except (Exception, SystemExit, GeneratorExit) as error:
        raise ModelError(f"the factory failed ({type(error).__name__}: {error})", where=name) from error
    if not isinstance(made, nn.Module):
        raise ModelError(
            f"the factory returned an object of type {type(made).__name__}, not a torch.nn.Module", where=name
        )
    invalid = [key for key, value in made.state_dict().items() if not isinstance(value, torch.Tensor)]
    if invalid:
        raise ModelError(
            "the state of the model has a value that is not a tensor, which a weights file cannot store",
            where=invalid[0],
        )
    try:
        network = clone_model(made).to(device="cpu", dtype=torch.float32)
    except ModelError as error:
        raise ModelError(error.what, where=f"{name}: {error.where}", hint=error.hint) from error
    check_output(network, input_shape, classes, where=name)
    return network.train()


def check_output(network: nn.Module, input_shape: tuple[int, ...], classes: int, *, where: str) -> None:
    """Raise ModelError unless the network, in eval mode, maps 2 zero records to `2 x classes` numbers."""
    network.eval()
    zeros = torch.zeros(2, *input_shape)
    try:
        with torch.no_grad():
            output = network(zeros)
    except (Exception, SystemExit, GeneratorExit) as error:
        raise ModelError(
            f"the model does not accept records of shape {input_shape} ({type(error).__name__}: {error})", where=where
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
