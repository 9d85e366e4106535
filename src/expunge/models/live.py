"""Factories and models that exist in this process only: objects of a notebook or script, by name.

`python-object:NAME` names them in architectures. Another process cannot build them, and says which line registers them.
"""

from __future__ import annotations

import inspect
import itertools
import re
import sys
from collections.abc import Callable
from typing import Any

from torch import nn

from expunge.core.errors import ExpungeError, ModelError
from expunge.core.trained import clone_model
from expunge.core.trust import resolve

PREFIX = "python-object:"

_FACTORIES: dict[str, Callable[..., Any]] = {}
_MODELS: dict[str, nn.Module] = {}


def is_live(name: str) -> bool:
    """Whether a name is that of an object of this process."""
    return name.startswith(PREFIX)


def register_factory(factory: Callable[..., Any], *, title: str = "") -> str:
    """Name a factory of models: `package.module:name` if it can be imported by that, else `python-object:NAME`.

    The factory is called as `build_custom` describes. Registering it again gives the same name; so does an equal
    function without a closure (a notebook cell that is run again).

    Args:
        factory: a function, a class of models, or any callable.
        title: the NAME; by default that of the function.

    Raises:
        ModelError: it is not callable.

    Example:
        >>> name = register_factory(lambda classes: nn.Linear(4, classes), title="one-layer")
        >>> name
        'python-object:one-layer'
        >>> from expunge.models import Architecture
        >>> Architecture(name, {}, (4,), 3).build(seed=0).weight.shape
        torch.Size([3, 4])
    """
    if not callable(factory):
        raise ModelError(
            f"a factory is a callable, not an object of type {type(factory).__name__}",
            where="factory",
            hint="give a function without required arguments, or one of input_shape and classes",
        )
    importable = _find_import(factory)
    return importable or _add(_FACTORIES, factory, title or getattr(factory, "__name__", type(factory).__name__))


def register_model_object(model: nn.Module, *, title: str = "") -> str:
    """Name a model, a copy of which is the network without a factory: it can be built, but not drawn again.

    Args:
        model: the model; it is copied.
        title: the NAME; by default its class.

    Raises:
        ModelError: it cannot be copied.

    Example:
        >>> register_model_object(nn.Linear(4, 3), title="mine")
        'python-object:mine'
    """
    return _add(_MODELS, clone_model(model), title or type(model).__name__)


def find_live(name: str) -> Callable[..., Any]:
    """The factory of a name; for a model, a function that copies it.

    Raises:
        ModelError: nothing of this name was registered in this process.
    """
    if name in _MODELS:
        return lambda: clone_model(_MODELS[name])
    if name in _FACTORIES:
        return _FACTORIES[name]
    title = name.removeprefix(PREFIX)
    raise ModelError(
        "names an object of the Python process that made it, which is not registered in this one",
        where=name,
        hint=f"define it, then: expunge.models.live.register_factory(make, title={title!r}); "
        "a factory in a module of its own (package.module:name) needs no such line",
    )


def is_model_object(name: str) -> bool:
    """Whether a name is that of a model, without a factory that could draw its weights."""
    return name in _MODELS


def refuse_drawing(name: str) -> ModelError:
    """The error for a network whose initial weights would have to be drawn, but there is only a model."""
    return ModelError(
        "the network was given as a model, so its initial weights cannot be drawn: there is nothing to retrain from",
        where=name,
        hint="say how the network is made: expunge.adopt(..., factory=make), where make() returns a new one",
    )


def _find_import(factory: Callable[..., Any]) -> str | None:
    """`package.module:name` if that is the same object and may be called by its name."""
    module, name = getattr(factory, "__module__", None), getattr(factory, "__qualname__", "")
    if not module or module == "__main__" or "<" in name or sys.modules.get(module) is None:
        return None
    if not getattr(sys.modules[module], "__file__", None):  # a notebook or an interactive session
        return None
    full = f"{module}:{name}"
    try:
        return (
            full
            if resolve(full, accepts=_is_network, wanted="a torch.nn.Module", error=ModelError) is factory
            else None
        )
    except ExpungeError:
        return None


def _is_network(found: type) -> bool:
    return issubclass(found, nn.Module)


def _add(registry: dict[str, Any], made: Any, title: str) -> str:
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", title).strip("-") or "model"
    for number in itertools.count(1):
        name = f"{PREFIX}{stem}" if number == 1 else f"{PREFIX}{stem}-{number}"
        if name not in _FACTORIES and name not in _MODELS:
            break
        if name in registry and _is_same(registry[name], made):
            break
    registry[name] = made
    return name


def _is_same(old: Any, new: Any) -> bool:
    """Whether two callables are one, or two functions of equal code without a closure or defaults."""
    if old is new:
        return True
    if not (inspect.isfunction(old) and inspect.isfunction(new)):
        return False
    if old.__closure__ or new.__closure__ or old.__defaults__ or new.__defaults__ or old.__kwdefaults__:
        return False
    return old.__code__ == new.__code__
