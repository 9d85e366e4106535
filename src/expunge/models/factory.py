"""Custom networks, `package.module:factory`: imported and called after the check of `expunge.core.trust`."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from expunge.core.errors import ConfigError, ExpungeError, ModelError, TrustError, unknown_name_hint
from expunge.core.trained import clone_model
from expunge.core.trust import ENTRIES, make_importable, permit, resolve

from .call import ModelCall, adapt, detect_call
from .call.detection import find_logits, run_call
from .live import find_live, is_live
from .named import find_named, is_named


def is_custom(name: str) -> bool:
    """Whether the name of a model is that of a custom factory."""
    return ":" in name


def find_factory(name: str) -> Callable[..., Any]:
    """Import the callable that `package.module:factory` names: an nn.Module class or a function of that package.

    Raises:
        TrustError: the owner did not agree to it, or it is never called (`expunge.core.trust`); nothing was imported.
        ModelError: the module or the attribute does not exist, importing failed, or it cannot be called; or the object
            of this process (`expunge.models.live`) is not registered.
    """
    if is_live(name):
        return find_live(name)
    if is_named(name):
        return find_named(name)
    return resolve(name, accepts=_is_network, wanted="a torch.nn.Module", error=ModelError, entries=True)


def permit_factory(name: str) -> None:
    """Raise TrustError or ModelError unless a factory named in a model directory may be imported; imports nothing."""
    if is_live(name):
        find_live(name)
    elif not is_named(name):
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


def build_custom(
    name: str,
    options: Mapping[str, Any],
    input_shape: tuple[int, ...],
    classes: int,
    call: ModelCall | None = None,
) -> nn.Module:
    """Call the factory and check its result. The factory draws from the global generators, which the caller seeds.

    The factory is called as `factory(input_shape=..., classes=..., **options)`, without those of the two that its
    signature does not have. The result is a deep copy on the CPU in float32, so a model that the factory stores is not
    modified. A model that does not return a tensor, or takes named inputs, is adapted (`expunge.models.call`).

    Raises:
        TrustError: see `find_factory`.
        ModelError: the factory fails, does not return a module, or the module cannot be copied or does not map
            2 records of zeros to `2 x K` logits.
    """
    factory = find_factory(name)
    names, takes_any = _read_parameters(factory)
    given = {"input_shape": input_shape, "classes": classes}
    arguments = {key: value for key, value in given.items() if takes_any or key in names}
    try:
        with make_importable(name):
            made = factory(**arguments, **options)
    except ExpungeError:
        raise
    except (Exception, SystemExit, GeneratorExit) as error:
        called = ", ".join([*arguments, *options]) or "no arguments"
        hint = (
            f"it is called with {called}: lambda: MyNetwork(...) gives it others" if type(error) is TypeError else None
        )
        raise ModelError(f"the factory failed ({type(error).__name__}: {error})", where=name, hint=hint) from error
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
    return fit_call(network.eval(), call, input_shape, classes, where=name).train()


def _initialise_lazy(network: nn.Module, call: ModelCall, probe: torch.Tensor) -> None:
    """Run the network once: lazy layers draw their tensors in the first pass, from the generators of the caller."""
    positional, named = call.arguments(probe)
    with contextlib.suppress(Exception), torch.no_grad():  # what does not run is named by `detect_call`
        network(*positional, **named)


def fit_call(
    network: nn.Module, call: ModelCall | None, input_shape: tuple[int, ...], classes: int, *, where: str
) -> nn.Module:
    """Return the network as one that maps 2 records of zeros to `2 x K` logits: adapted, if its call is another.

    Args:
        network: the network, in evaluation mode.
        call: how it is called; without the name of an output, that is found (`detect_call`). None: one tensor.
        input_shape: shape of one record.
        classes: number of classes K.
        where: name of the model, for messages.

    Raises:
        ModelError: it does not.
    """
    probe = torch.zeros(2, *input_shape) if call is None or call.fields is None else call.fields.probe(2)
    if any(torch.nn.parameter.is_lazy(parameter) for parameter in network.parameters()):
        _initialise_lazy(network, call or ModelCall(), probe)
    if call is None or not call.output:
        call = detect_call(network, probe, classes, None if call is None else call.fields, where=where)
    else:
        find_logits({call.output: call.select(run_call(network, call, probe, where))}, 2, classes, where)
    return adapt(network, call)
