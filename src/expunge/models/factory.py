"""A user's own network: `package.module:factory`, also from a module in the current directory."""

from __future__ import annotations

import copy
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from expunge.core.errors import ConfigError, ModelError, unknown_name_hint


def is_own(name: str) -> bool:
    """Whether a model's name means a user's factory."""
    return ":" in name


def find_factory(name: str) -> Callable[..., Any]:
    """The callable that `package.module:factory` names.

    Raises:
        ModelError: the module or the attribute does not exist, importing failed, or it cannot be called.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise ModelError("a model of your own is given as package.module:factory", where=name)
    if module_name.partition(".")[0] in sys.stdlib_module_names:  # a file that came from elsewhere may name anything
        raise ModelError("a module of Python's standard library makes no networks", where=name)
    here = os.getcwd()
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        importlib.invalidate_caches()
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        what = f"no module named {error.name!r} can be imported"
        raise ModelError(what, where=name, hint=f"install it, or start in its directory (now: {here})") from error
    except Exception as error:
        raise ModelError(f"importing {module_name} failed ({type(error).__name__}: {error})", where=name) from error
    finally:
        if added and here in sys.path:
            sys.path.remove(here)
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = [key for key in dir(found) if not key.startswith("_")]
            raise ModelError(f"{module_name} has no {attribute!r}", where=name, hint=unknown_name_hint(part, names))
        found = getattr(found, part)
    if not callable(found):
        raise ModelError(f"{attribute} is a {type(found).__name__}, not a function or class", where=name)
    return found


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
        ModelError: the factory cannot be found.
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
        ModelError: the factory fails, returns no module, or the module does not map `2 x ...` zeros to `2 x K` logits.
    """
    factory = find_factory(name)
    names, anything = _takes(factory)
    given = {"input_shape": input_shape, "classes": classes}
    arguments = {key: value for key, value in given.items() if anything or key in names}
    try:
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
