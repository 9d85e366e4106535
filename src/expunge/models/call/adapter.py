"""A model that takes packed batches and returns logits, as a copy of the user's model of a derived class.

The copy is no wrapper: its modules, and the names of its weights, are the user's. Only `forward` is another one.
"""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

from expunge.core.errors import ModelError
from expunge.core.trained import clone_model

from .model_call import ModelCall


class Adapted:
    """What a derived class adds: `model_call` and the user's own class, and `input_fields` for `core.probe`."""

    model_call: ModelCall
    own_class: type[nn.Module]


def find_call(model: nn.Module) -> ModelCall | None:
    """The call of an adapted model; None for any other.

    Example:
        >>> find_call(nn.Linear(2, 1)) is None
        True
    """
    return type(model).model_call if isinstance(model, Adapted) else None


def adapt(model: nn.Module, call: ModelCall) -> nn.Module:
    """Return a copy of a model that takes a packed batch and returns the logits; the model itself if it does already.

    Called with anything but one positional argument, the copy behaves as the user's model. Logits and gradients are
    those of the user's model, bit for bit.

    Args:
        model: the user's model; not modified. If it is an adapted one, its call is replaced.
        call: the arguments and the output.

    Raises:
        ModelError: the model cannot be copied, or its class cannot be derived.

    Example:
        >>> import torch
        >>> from expunge.data.fields import InputFields
        >>> class Tagger(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.embed = nn.Embedding(9, 4)
        ...         self.head = nn.Linear(4, 2)
        ...
        ...     def forward(self, words, mask):
        ...         return {"scores": self.head((self.embed(words) * mask[..., None]).sum(1))}
        >>> record = {"words": [3, 5], "mask": [1, 1]}
        >>> call = ModelCall(InputFields.infer(record), "scores")
        >>> model = adapt(Tagger(), call)
        >>> model(torch.from_numpy(call.fields.pack(record))[None]).shape, list(model.state_dict())[0]
        (torch.Size([1, 2]), 'embed.weight')
        >>> type(unadapt(model)) is Tagger
        True
    """
    if find_call(model) == (None if call.is_plain else call):
        return model
    copied = unadapt(model) if isinstance(model, Adapted) else clone_model(model)
    if call.is_plain:
        return copied
    where = type(copied).__name__
    if "forward" in vars(copied):
        raise ModelError(
            "the object replaces the forward of its class (torch.compile and accelerate hooks do)",
            where=where,
            hint="give the plain module: model._orig_mod, or accelerate.hooks.remove_hook_from_module(model)",
        )
    try:
        own: Any = type(copied)
        copied.__class__ = _derive_class(own, call)
    except TypeError as error:
        raise ModelError(
            f"the class of the model cannot be derived ({error})",
            where=where,
            hint="write a factory that returns a torch.nn.Module whose forward takes a batch and returns logits",
        ) from error
    return copied


def unadapt(model: nn.Module) -> nn.Module:
    """Return a copy of an adapted model that is of the user's own class again; any other model is returned itself.

    Raises:
        ModelError: the model cannot be copied.
    """
    if not isinstance(model, Adapted):
        return model
    copied: Any = clone_model(model)
    copied.__class__ = type(model).own_class
    made: nn.Module = copied
    return made


@functools.cache
def _derive_class(own: Any, call: ModelCall) -> Any:
    """One class for each pair, so that two copies of a model are of one class. It has the name of the user's class."""

    def forward(self: nn.Module, *given: Any, **named: Any) -> Any:
        if named or len(given) != 1:
            return own.forward(self, *given, **named)
        positional, keywords = call.arguments(given[0])
        return call.select(own.forward(self, *positional, **keywords))

    body = {
        "forward": forward,
        "model_call": call,
        "own_class": own,
        "input_fields": call.fields,
        "__module__": own.__module__,
        "__qualname__": own.__qualname__,
        "__doc__": own.__doc__,
    }
    return type(own)(own.__name__, (own, Adapted), body)
